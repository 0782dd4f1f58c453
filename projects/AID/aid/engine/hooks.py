"""Training hooks."""

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.seeding import seed_all

__all__ = ["DropPictures", "SeedStep"]


class DropPictures(HookBase):
    """Forgets the pictures of a step, in processes whose log nobody writes down.

    Detectron2 has every process draw them and keeps them until they are written, which only the
    main process does: with VIS_PERIOD on, the others would need more and more memory.
    """

    def after_step(self) -> None:
        self.trainer.storage.clear_images()


class SeedStep(HookBase):
    """Seeds every iteration by its number.

    Detectron2 samples anchors and RoIs at random and saves no random state. With this hook an
    interrupted run goes on exactly as if nothing had happened, on every process.
    """

    def __init__(self, seed: int):
        """
        Args:
            seed: of the run, not negative.
        """
        self._seed = seed

    def before_step(self) -> None:
        seed_all(self._seed, comm.get_rank(), self.trainer.iter)
