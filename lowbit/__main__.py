"""``python -m lowbit``: what is built and what runs here."""

from lowbit.info import summary

if __name__ == "__main__":
    print(summary())
