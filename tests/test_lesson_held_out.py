from data.town import World
from lessons.held_out import check_room, load_world, of_the_town
from tiny import write

ROWS = [dict(kind="fact"), dict(kind="sum"), dict(kind=["sum"]), dict(), dict(kind="story")]


def test_only_rows_of_the_kinds_are_kept():
    assert of_the_town(ROWS, ("fact", "sum"), "my.jsonl") == ROWS[:2]


def test_a_kind_without_a_row_is_named(refused):
    assert "my.jsonl has no row of the kind wish" in refused(of_the_town, ROWS, ("sum", "wish"),
                                                             "my.jsonl")


def test_another_town_than_that_in_the_folder_is_refused(refused):
    write("data/town/world.json", dict(facts=World(9).facts))
    assert load_world(9).facts == World(9).facts
    assert "--town=0 is not the town in data/town" in refused(load_world, 0)


def test_without_that_folder_the_first_town_is_right():
    assert load_world(0).facts == World(0).facts


def test_a_question_and_its_answer_must_fit_the_context(tiny_tokenizer, refused):
    n = len(tiny_tokenizer.encode_chat("Who?", reply=True)[0])
    check_room(tiny_tokenizer, ["Who?", ""], n + 5, 5, "--init=a.pt")
    said = refused(check_room, tiny_tokenizer, ["Who?", ""], n + 4, 5, "--init=a.pt")
    assert f"--init=a.pt reads {n + 4} tokens, but this lesson needs {n + 5}" in said
