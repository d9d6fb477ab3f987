"""The one exception a user can cause, and what hostile files cause."""


class UserError(Exception):
  """Something the user gave cannot be used.

  The message is one sentence that says what is wrong and what to do about it. The command line
  prints it without a traceback and exits with status 2; as a library it is an ordinary exception.
  """


# What reading JSON may raise besides ValueError: of brackets without end, and of huge numbers.
UNREADABLE = (RecursionError, OverflowError)
