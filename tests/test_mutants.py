from pathlib import Path

import pytest

from lab.mutants import MUTANTS, ROOT, TESTS

EVERY = [(file, *mutant) for file, mutants in MUTANTS.items() for mutant in mutants]


@pytest.mark.parametrize("file, name, old, new, breaks", EVERY, ids=lambda part: part[:30])
def test_a_fault_can_be_put_in_at_one_place(file, name, old, new, breaks):
    text = Path(ROOT, file).read_text()
    assert text.count(old) == 1 and file in TESTS
    compile(text.replace(old, new), file, "exec")
