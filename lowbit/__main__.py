"""``python -m lowbit``: what is built and what runs here."""

import os
import sys

from lowbit.info import summary

if __name__ == "__main__":
    try:
        print(summary(), flush=True)
    except BrokenPipeError:  # `python -m lowbit | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
