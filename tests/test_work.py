"""Work prepared in threads: in order, once, and never computed before it is ready."""

import threading

import numpy as np
import pytest

from jaxprobe.work import WorkUnit, prepared_in_threads


@pytest.mark.parametrize("early", [True, False])
def test_units_wait_for_what_they_share_and_it_is_made_once(early):
    told, begun, go = [], threading.Event(), threading.Event()

    def slow():
        begun.set()
        go.wait(10)
        told.append("prepared")

    def compute():
        told.append("computed")
        return {"x": np.arange(2)}

    with prepared_in_threads(early) as prepared:
        units = [prepared(WorkUnit(str(n), compute, 2.0, (slow,))) for n in range(3)]
        assert [(unit.name, unit.cost) for unit in units] == [("0", 2.0), ("1", 2.0), ("2", 2.0)]
        threading.Timer(0.05, go.set).start()
        assert begun.wait(0.01) == early
        assert [unit.compute()["x"].tolist() for unit in units] == [[0, 1]] * 3
    assert told == ["prepared", *["computed"] * 3]


def test_a_unit_without_preparation_waits_for_nothing():
    with prepared_in_threads(early=True) as prepared:
        assert prepared(WorkUnit("a", lambda: {"x": np.ones(1)})).compute()["x"] == 1


def test_what_goes_wrong_is_told_where_it_was_needed():
    def refuse():
        raise ValueError("no program")

    with prepared_in_threads(early=True) as prepared:
        unit = prepared(WorkUnit("a", lambda: pytest.fail("computed unprepared"), prepare=(refuse,)))
        with pytest.raises(ValueError, match="no program"):
            unit.compute()


def test_an_interrupted_run_does_not_begin_what_is_left():
    begun, go = [], threading.Event()

    def prepare(number):
        def run():
            begun.append(number)
            go.wait(10)

        return run

    with pytest.raises(KeyboardInterrupt), prepared_in_threads(early=True) as prepared:
        for number in range(20):
            prepared(WorkUnit(str(number), dict, prepare=(prepare(number),)))
        raise KeyboardInterrupt
    go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("prepare"):
            thread.join(10)
    assert len(begun) <= 2
