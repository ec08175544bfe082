"""A listener to the epochs of a trial that can be cut off."""

from trainables.api import EpochReport


class Reports:
    """Keeps what is reported; raises after some of it."""

    def __init__(self, survive: int = 100) -> None:
        self.survive = survive
        self.seen: list[EpochReport] = []

    def __call__(self, epoch: EpochReport) -> None:
        self.seen.append(epoch)
        if len(self.seen) > self.survive:
            raise KeyboardInterrupt
