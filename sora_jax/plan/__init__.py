"""What a program will need of chips that are not here."""
