"""What texts are run on: the device, the memory that they may take, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_lite.calibrate.run import Prepared


@dataclass(frozen=True)
class Host:
    """Where texts are run.

    Attributes:
        say: tells the user what is going on.
        device: of torch.
        max_memory: most bytes that running texts may take; None: any.
    """

    say: Callable[[str], object] = lambda text: None
    device: str = "cpu"
    max_memory: int | None = None

    def accept(self, prepared: Prepared, what: str) -> None:
        """Tell what is to be done and what it takes.

        Raises:
            ResourceError: it is more memory than is allowed.
        """
        from mergekit_lite.calibrate.estimate import require_memory
        from mergekit_lite.calibrate.run import sentence

        self.say(f"{what}: {sentence(prepared)}")
        require_memory(prepared.estimate, self.max_memory)
