"""What holds for all tests."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background by a shell: half of the tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.pop("COLUMNS", None)  # tables keep their lines, wherever the tests are started
