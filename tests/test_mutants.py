import pytest

from lab.mutants import ROOT, faults

EVERY = [fault[:4] for fault in faults()]


@pytest.mark.parametrize("file, name, old, new", EVERY, ids=[f"{f[0]}, {f[1]}" for f in EVERY])
def test_a_fault_can_be_put_in_at_one_place(file, name, old, new):
    text = (ROOT / file).read_text("utf-8")
    assert text.count(old) == 1
    compile(text.replace(old, new), file, "exec")
