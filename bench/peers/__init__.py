"""Other loaders, each a module with one interface and run in an environment of its own.

Nothing here imports this project's packages. A module has ``QUALITY``, what its shuffle mixes; ``VARIANTS``,
of which the fastest counts; ``prepare(task)``, which writes the rows in the loader's own format; and
``epochs(task)``, which gives what makes an iterator over the shuffled batches of an epoch. ``READS_AHEAD`` is
true of one that begins an epoch before it is asked for.
`bench.peers.__main__` runs one at a time; ``scripts/peer-environments`` makes the environments.
"""

NAMES = ("torch", "datasets", "litdata", "grain", "webdataset", "streaming")
