"""What holds for all tests."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background by a shell: half of the tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
