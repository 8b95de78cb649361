"""A Dask cluster in place of this machine's worker processes. Its workers share the folders and the code with it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from recipe.core.errors import RecipeError, UnfitError
from recipe.core.text import say, snippet
from recipe.core.versions import code_sha256

Finish = Callable[[Any, Path, Any], int]  # (config, folder, shard) -> conversations in it
ANSWER_SECONDS = 10
RETRIES = 3  # of a shard whose worker died
_local = threading.local()  # a Dask worker may run several threads


class ClusterError(RecipeError):
    """The cluster is at fault, not the conversations. Finished shards are whole."""


@contextlib.contextmanager
def open_cluster(address: str, config: Any, folder: Path) -> Iterator[tuple[Callable[[Finish, Any], Future[int]], int]]:
    """(a function that submits a shard, the number of threads of the cluster).

    Raises UnfitError if Dask is not installed, ClusterError: no scheduler, no worker, workers that die or have other
    code. Finished shards stay.
    """
    client = _connect(address)
    try:
        threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
        if not threads:
            raise ClusterError(
                f"the scheduler at {snippet(address)} has no worker: start `dask worker` on the machines"
            )
        say(f"prepare on {threads} threads of the cluster at {snippet(address)}")
        pool, code = client.get_executor(pure=False, retries=RETRIES), code_sha256()
        shared = client.scatter(config, broadcast=True, hash=False)
        yield lambda finish, shard: pool.submit(_finish, finish, code, shared, folder.resolve(), shard), threads
    except (OSError, CancelledError) as error:
        raise ClusterError(
            f"the cluster at {snippet(address)} was lost ({snippet(error) or type(error).__name__}): run the same "
            "command again, finished shards are kept"
        ) from None
    except Exception as error:
        if type(error).__name__ != "KilledWorker":
            raise
        raise ClusterError(
            "workers of the cluster died on one shard again and again, probably for lack of memory: give them more, "
            "and run the same command again, finished shards are kept"
        ) from None
    finally:
        client.close()


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise UnfitError(
            "corpus.cluster is set and Dask is not installed, expected docker/requirements-cluster.lock: install it "
            "with pip install --require-hashes, or leave corpus.cluster empty"
        ) from None
    try:
        return Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {snippet(address)} ({type(error).__name__}): start one, correct "
            "corpus.cluster, or leave it empty to use this machine"
        ) from None


def _finish(finish: Finish, code: str, config: Any, folder: Path, shard: Any) -> int:
    """Runs on a worker."""
    if code_sha256() != code:
        raise ClusterError("a worker of the cluster has other code than this machine: start all from one checkout")
    if not folder.is_dir():
        raise ClusterError(f"a worker of the cluster does not see {folder}: put the corpus on a shared file system")
    return finish(config, folder, shard)


def own(key: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns for this `key`, made once in each thread."""
    if getattr(_local, "key", None) is not key:
        _local.key, _local.value = key, make()
    return _local.value
