"""Faults of captions, against outputs that a person labelled."""

import pytest

from app.evaluation.behaviour import FAULTS, Output, classify_output, score_behaviour

PROMPT = (
    "You are an expert at describing SVG images. "
    "Provide a detailed, accurate description of this SVG image:"
)
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256"><rect x="20" y="30" width="90" '
    'height="80" fill="#d22"/><path d="M128 64l32 48-20 12 8 40-60-22z"/><text x="8" y="9">Happy '
    "birthday to you and your family</text></svg>"
)
CUT = "cut"  # the length limit ended the output

LABELLED = [
    # valid
    ("A small red circle above a large blue square.", ""),
    ("ring, line and line, filled", ""),
    ("cat", ""),
    ("A heart: <3, drawn in red.", ""),
    ("Two brackets, </>, the sign of source code.", ""),
    ("The signs a < b and c > d on a blackboard.", ""),
    ("An icon of an HTML file, with the letters CSS below.", ""),
    ("A clock with the numbers 1 2 3 4 5 6 7 8 9 10 11 12.", ""),
    ("A chess board with a rook on A1 and a king on E8.", ""),
    ("A very very very small dot.", ""),
    ("A red star, a blue star, a red star, and a blue star.", ""),
    ("Three stars: star, star, star.", ""),
    ("A laughing face that says ha ha ha ha.", ""),
    ("A user icon: a head and shoulders.", ""),
    ("A model of a steam engine.", ""),
    ("User with a plus sign, to add a contact.", ""),
    ("A system of three planets around a star.", ""),
    ("A detailed description is not possible: the image is empty.", ""),
    ("An accurate drawing of a beetle.", ""),
    ("The words Happy birthday to you and your family above a cake.", ""),
    ("A banner that reads 1000000 followers.", ""),
    ("Ein roter Kreis über einem blauen Quadrat.", ""),
    ("一个红色的圆圈在蓝色方块上面", ""),
    ("A person with a hat.\n\nThe hat is green.", ""),
    ("A medium black ring to the left of a small gray ring.", ""),
    ("A large, large, large elephant beside a small, small mouse.", ""),
    ("A path through a wood, with a circle of light at its end.", ""),
    ("An 80 x 60 grid of dots with a width of 4 columns.", ""),
    ("- a red circle\n- a blue square\n- a green star", ""),
    ("The letters M, L, H and V in four corners.", ""),
    # unfinished
    ("A small red circle above a large blue", CUT),
    ("A regular icon of a pizza, drawn in regular outlines of", CUT),
    ("A large tree with many leaves, under which there is a bench. On the bench,", CUT),
    # empty
    ("", "empty"),
    ("   \n\t", "empty"),
    ("...", "empty"),
    ("- -- -", "empty"),
    ("", f"{CUT} empty"),
    # echoes of the drawing
    ("<svg xmlns=", "svg_echo"),
    ('<rect x="20" y="30" width="90" height="80" fill="#d22"/>', "svg_echo"),
    ("A red square. </svg>", "svg_echo"),
    ('<path d="M1 2"/>', "svg_echo"),
    ("M128 64l32 48-20 12 8 40-60-22z", "svg_echo"),
    ("A star with the path M10 20L30 40L50 60Z", "svg_echo"),
    ('The shape has fill="red" and nothing else.', "svg_echo"),
    ("stroke-width='3'", "svg_echo"),
    ('viewBox="0 0 24 24"', "svg_echo"),
    ("A shape at 64l32 48-20 12 8 40 of the page", "svg_echo"),
    ("m5.5-2.1c1,2,3,4,5,6", "svg_echo"),
    ("<circle cx=", f"{CUT} svg_echo"),
    ("<g><g><g><g><g><g><g>", f"{CUT} svg_echo repetition_loop"),
    # leaks of the prompt and of roles
    ("You are an expert at describing SVG images.", "prompt_leak"),
    ("Provide a detailed, accurate description of this: a cat.", "prompt_leak"),
    ("a cat. provide a DETAILED accurate description OF THIS svg image", "prompt_leak"),
    ("I am an expert at describing SVG images, and this is a dog.", "prompt_leak"),
    ("model\nA red circle.", "role_leak"),
    ("A red circle.\nuser\nAnother drawing", "role_leak"),
    ("A red circle.<end_of_turn>", "role_leak"),
    ("<bos>A red circle.", "role_leak"),
    ("<start_of_turn>model A red circle.", "role_leak"),
    ("Assistant: A red circle.", "role_leak"),
    ("User: describe it.\nModel: it is a circle.", "role_leak"),
    ("### Assistant:\nA circle.", "role_leak"),
    ("<unused12> A circle.", "role_leak"),
    ("[INST] A circle. [/INST]", "role_leak"),
    ("A cat.\nuser\nYou are an expert at describing SVG images.", "prompt_leak role_leak"),
    # repetition loops
    ("a a a a a a a a", "repetition_loop"),
    ("red circle red circle red circle red circle red circle red circle", "repetition_loop"),
    ("A red star. A red star. A red star. A red star.", "repetition_loop"),
    ("A dog sits on a mat. A dog sits on a mat. A dog sits on a mat.", "repetition_loop"),
    ("lalalalalalalalala", "repetition_loop"),
    ("A house, and then fuuuuuuuuuuuu", "repetition_loop"),
    ("icons of icons of icons of icons of icons of icons of", f"{CUT} repetition_loop"),
    (
        "The first line is long and red. The second is blue. The first line is long and red. "
        "The second is blue. The first line is long and red. The second is blue.",
        "repetition_loop",
    ),
]


@pytest.mark.parametrize(("text", "label"), LABELLED)
def test_every_output_has_the_faults_that_a_person_sees(text, label):
    expected = ["unfinished" if fault == CUT else fault for fault in label.split()]
    output = Output(text, is_finished=CUT not in label)
    assert classify_output(output, svg=SVG, prompt=PROMPT) == expected


def test_the_labelled_outputs_show_every_fault_and_are_at_least_sixty():
    assert len(LABELLED) >= 60
    assert {fault for _, label in LABELLED for fault in label.split()} - {CUT} == {*FAULTS} - {
        "unfinished"
    }


def test_every_long_copy_of_the_markup_is_an_echo_whatever_its_place_and_white_space():
    start = SVG.index("<path")
    for i in range(start, start + 40):
        text = f"A drawing of {SVG[i : i + 24].replace(' ', chr(10))} on paper"
        assert "svg_echo" in classify_output(Output(text, True), svg=SVG, prompt=PROMPT), text


@pytest.mark.parametrize("prompt", ["", "Describe:", "Describe it."])
def test_a_very_short_prompt_is_no_leak(prompt):
    output = Output("Describe it. A cat.", is_finished=True)
    assert classify_output(output, svg=SVG, prompt=prompt) == []


def test_a_short_prompt_leaks_as_a_whole():
    output = Output("Describe this drawing. It is a cat.", is_finished=True)
    assert classify_output(output, svg=SVG, prompt="Describe this drawing:") == ["prompt_leak"]


def test_shares_count_each_output_once_for_each_fault():
    scores = score_behaviour([[], ["empty"], ["unfinished", "svg_echo"], []])
    assert scores["valid"] == 0.5
    assert scores["empty"] == scores["unfinished"] == scores["svg_echo"] == 0.25
    assert scores["role_leak"] == 0


@pytest.mark.parametrize(
    "unit", ["M1 ", "<path ", "1", "1 ", "x", 'd="', "M1 2", "user", ">< ", "\n", "# ", "M1.", "M,"]
)
def test_long_hostile_outputs_are_classified(unit):
    """Patterns that can match in many ways would take exponential time."""
    text = f"M{unit * 20_000} x"
    faults = classify_output(Output(text, is_finished=False), svg=SVG, prompt=PROMPT)
    assert "unfinished" in faults
