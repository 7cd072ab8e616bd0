"""In which order images are seen, and how they are changed on the way.

Position p lies in epoch p // n at place p mod n, and each epoch is its own permutation of the n
images: a pure function of (seed, position), so that processes share it and resuming needs no state.

Images that are streamed are shuffled in windows: the shards (of parquet: the row groups) of an
epoch in a random order, and of what then follows on each other so many images at a time. So what is
read lies in a few shards.
"""

import numpy as np
from numpy.typing import NDArray


class Order:
    """The endless shuffled sequence of `ids`.

    `shard`: of each id the number of its shard, [n]; then `window` images are shuffled together,
    of at most the shards that hold them. 0: all.
    """

    def __init__(
        self,
        ids: NDArray[np.int64],
        seed: int,
        shard: NDArray[np.int32] | None = None,
        window: int = 0,
    ) -> None:
        if len(ids) == 0:
            raise ValueError("an order needs at least one id")
        self.ids = np.asarray(ids, np.int64)
        self.seed = seed
        self.shard, self.window = shard, window
        self._epoch = -1
        self._shuffled = self.ids

    def at(self, position: int, count: int) -> NDArray[np.int64]:
        """The ids at `position` ... `position + count - 1`, across epochs."""
        n = len(self.ids)
        parts = []
        while count > 0:
            epoch, place = divmod(position, n)
            take = min(count, n - place)
            parts.append(self._permutation(epoch)[place : place + take])
            position, count = position + take, count - take
        return np.concatenate(parts) if parts else self.ids[:0]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            # Sorting raw draws, not Generator.permutation: numpy keeps only the former stream
            # the same in all its versions.
            seeds = np.random.SeedSequence([self.seed % 2**64, epoch])
            bits = np.random.PCG64(seeds)
            draws = bits.random_raw(len(self.ids))
            if self.shard is None or not 0 < self.window < len(self.ids):
                places = np.argsort(draws, kind="stable")
            else:
                of_shards = bits.random_raw(int(self.shard.max()) + 1)
                places = np.argsort(of_shards[self.shard], kind="stable")  # shard after shard
                windows = np.arange(len(places)) // self.window
                places = places[np.lexsort((draws, windows))]
            self._shuffled = self.ids[places]
            self._epoch = epoch
        return self._shuffled


def augment(
    images: NDArray[np.uint8], rng: np.random.Generator, flip: bool, shift: int
) -> NDArray[np.uint8]:
    """Mirror each image with probability 1/2, and move it by up to `shift` pixels either way.

    What moves in at an edge repeats the edge's pixels. images: [B, H, W, C]. The i-th image uses
    the i-th three draws of `rng`, so it does not depend on how many follow.
    """
    if not flip and shift == 0:
        return images
    B, H, W, _ = images.shape
    draws = rng.random((B, 3))
    out = images.copy()
    if flip:
        mirrored = draws[:, 0] < 0.5
        out[mirrored] = images[mirrored, :, ::-1]
    if shift:
        corners = np.floor(draws[:, 1:] * (2 * shift + 1)).astype(np.int64)  # [B, 2]
        edges = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        padded = np.pad(out, edges, mode="edge")
        for i, (top, left) in enumerate(corners.tolist()):  # twice as fast as one fancy index
            out[i] = padded[i, top : top + H, left : left + W]
    return out
