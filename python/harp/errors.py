"""The one exception of the engine."""


class HarpError(RuntimeError):
    """What the engine refused or could not do.

    Attributes:
        code: for programs: ``invalid_option``, ``invalid_batch``, ``unsupported_model``, ``unsupported_call``,
            ``context_full``, ``aborted``, ``decode_failed``, ``invalid_state``, ``invalid_input`` or ``io``
            (``include/harp/error.h``).
    """

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code

    def __reduce__(self):  # an exception crosses processes
        return type(self), (str(self), self.code)
