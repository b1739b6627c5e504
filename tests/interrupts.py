"""Children that hear Ctrl-C, whoever runs the tests."""

import signal


def hear_ctrl_c():
    """As `preexec_fn`: a shell that runs the tests in the background has them, and their children, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
