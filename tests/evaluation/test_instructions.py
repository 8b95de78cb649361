"""Instructions: every prompt can be followed, silence follows none, and each rule judges what it says."""

import pytest

from recipe.core.errors import RecipeError
from recipe.evaluation.instructions import CHECKS, Instruction, followed, follows, read

GOOD = [
    "- apple\n- pear\n- plum",
    "1. Mars\n2. Venus\n3. Earth\n4. Jupiter",
    "Yes.",
    "The sea is deep. It is salty.",
    "Rain is water that falls from clouds.",
    "Bread is made of flour and water. Bread is made of flour and water. Bread is made of flour and water. Bread is made of flour and water. Bread is made of flour and water. Bread is made of flour and water. Bread is made of flour and water. Bread is made of flour and water. Bread is made of flour and water. Bread is made of flour and water. ",  # noqa: E501
    "A cat sleeps all day.",
    "GREEN.",
    "april",
    '{"name": "Ada", "age": 36}',
    '```json\n{"city": "Paris", "country": "France", "population": 2100000}\n```',
    "Dear reader, books are doors.",
    "Hello, and see you soon",
    "A lamp shines on the snow.",
    "Green light falls on moss and the birds sing above.",
    "Music is sound.\n\nIt moves us.",
    "One.\n\nTwo.\n\nThree.",
    "La capitale de la France est Paris, une très belle ville.",
    "Der Himmel ist blau, weil die Luft das blaue Licht stärker streut als das rote.",
    "Una biblioteca es un lugar donde se guardan libros para leer y prestar.",
    "图书馆是收藏书籍供人阅读和借阅的地方。",
    "A computer is a machine that processes data. It follows programs.",
    "cat\ndog\ncow\nhen\npig",
    "Cold",
    "green",
    "We walk to the sea every day.",
    "1. Boil water.\n2. Add the egg.\n3. Wait.\n4. Cool it.",
    "- Dig.\n- Plant.\n- Water.",
    "The moon\nis bright\nand round\ntonight",
    "Water flows. The water sings. All is water.",
    "Try painting.",
    "A comfortable and cheap chair.",
    "What time is it?",
    "I love chocolate!",
    "First wet the car. Then wash it. Then dry it.",
    '{"answer": 5}',
    "A doctor examines people who are ill and tries to make them healthy.",
    "A university is a place where people study and do research. A university is a place where people study and do research. A university is a place where people study and do research. ",  # noqa: E501
    "Spring, summer, autumn, winter",
    "CAUTION: WET FLOOR",
    "old pond\na frog jumps\nsplash",
    "- a1\n- b2\n- c3\n- d4\n- e5\n- f6",
    "It is the colour of oranges in the sun.",
    "Thank you for the cake, my friend",
    "True",
    "4",
    "Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. Friends help each other. ",  # noqa: E501
    "- Tea is mild.\n- Coffee is strong.",
    "1. It is deep.\n2. It is salty.\n3. It is large.",
    "i ate a pear.",
    "A dog hid a bone in the garden and forgot where it was.",
    "Things fall toward the ground because the earth pulls them.",
    "glad, joyful, cheerful",
    "The Last Robot",
    "Mir geht es gut",
    "Question: what is this?\nAnswer: a test.",
    "It is a small box. You move it by hand. It moves the arrow.",
    "Hello Ann,\n\nmay I have a day off?\n\nBest regards",
    "- It is healthy.\n- It is free.",
    "one\ntwo\nthree\nfour\nfive",
]


@pytest.mark.parametrize(
    ("instruction", "answer"), zip(read(), GOOD, strict=True), ids=lambda item: getattr(item, "id", "")
)
def test_every_prompt_can_be_followed(instruction, answer):
    assert follows(instruction, answer) and follows(instruction, answer, loose=True)
    assert not follows(instruction, " \n") and not follows(instruction, "")


def test_sixty_prompts_use_every_rule():
    items = read()
    assert len(items) == len({item.prompt for item in items}) == 60
    assert {rule["rule"] for item in items for rule in item.rules} == CHECKS.keys()


def test_a_chatty_answer_fails_nearly_everywhere():
    chatty = "Sure, here is a story. I am a language model, and I like to talk about many things, of course."
    assert sum(followed(read(), [chatty] * 60, loose=False)) <= 6


def test_loose_forgives_small_talk_and_emphasis_only():
    item = Instruction("x", "?", ({"rule": "one_of", "choices": ["yes", "no"]},))
    assert not follows(item, "Sure!\n**Yes**") and follows(item, "Sure!\n**Yes**", loose=True)
    assert not follows(item, "Sure!\n**Maybe**", loose=True)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"rule": "words", "most": 2}, "well-known thing", "one two three"),
        ({"rule": "sentences", "least": 2, "most": 2}, "One. Two!", "One."),
        ({"rule": "numbered", "least": 2}, "1. a\n2) b", "1. a\n3. b"),
        ({"rule": "contains", "words": ["snow"]}, "Snow!", "snowman"),
        ({"rule": "lacks", "words": ["tree"]}, "street", "a tree."),
        ({"rule": "json"}, '{"a": [1]}', "[1]"),
        ({"rule": "json", "keys": ["b"]}, '{"b": 1}', '{"a": 1}'),
        ({"rule": "case", "is": "upper"}, "ÉTÉ 1", "ÉTé"),
        (
            {"rule": "language", "code": "fr"},
            "Où est la bibliothèque de la ville ?",
            "Where is the library of the town?",
        ),
    ],
)
def test_a_rule_judges_what_it_says(rule, good, bad):
    item = Instruction("x", "?", (rule,))
    assert follows(item, good) and not follows(item, bad)


@pytest.mark.parametrize("line", ["no", '{"id": 1}', '{"id": 1, "prompt": "x", "rules": [{"rule": "rhymes"}]}'])
def test_a_line_that_is_not_an_instruction_is_named(tmp_path, line):
    file = tmp_path / "mine.jsonl"
    file.write_text(read.__defaults__[0].read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(RecipeError, match="line 2"):
        read(file)


def test_hostile_json_is_no_crash():
    item = Instruction("x", "?", ({"rule": "json"},))
    assert not follows(item, "[" * 100_000)
