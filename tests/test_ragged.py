import sys

import numpy as np
import pytest

from gmp_utils.data.ragged import Ragged


def test_rows_are_sampled_in_order_from_given_utterances():
    ragged = Ragged(np.arange(100), {"a": 50, "b": 30, "c": 20})
    drawn = ragged.sample(["c", "a"], 40, 0)
    assert len(set(drawn)) == 40
    order = np.concatenate([np.arange(80, 100), np.arange(50)]).tolist()
    assert set(drawn) < set(order)
    assert [order.index(row) for row in drawn] == sorted(order.index(row) for row in drawn)
    assert drawn.tolist() == ragged.sample(["c", "a"], 40, 0).tolist()
    assert drawn.tolist() != ragged.sample(["c", "a"], 40, 1).tolist()
    for everything in (0, 70, 71):
        assert ragged.sample(["c", "a"], everything, 0).tolist() == order


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_flushed_values_leave_the_memory(tmp_path):
    def resident():
        with open("/proc/self/status") as status:
            lines = [line for line in status if line.startswith(("RssFile", "RssShmem"))]
        assert len(lines) == 2
        return sum(int(line.split()[1]) for line in lines) / 1024

    ragged = Ragged.create(tmp_path / "frames", {"a": 100}, np.uint8, (2**20,))
    before = resident()
    ragged.values[:] = 7
    assert resident() - before > 90
    ragged.flush()
    assert resident() - before < 10
    assert (Ragged.open(tmp_path / "frames")["a"] == 7).all()
    ragged.remove()
    assert not list(tmp_path.iterdir())
