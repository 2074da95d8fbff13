"""Tests of `data.mirrored_names`: names of left and right, and names that only look like them."""

import string

import pytest

from flowers_torch.data.mirrored_names import mirrored_classes


@pytest.mark.parametrize(
    "names",
    [
        ["left", "right"],
        ["straight", "turn-left", "turn_right"],
        ["TurnLeft", "TurnRight"],
        ["turnLEFT", "turnRIGHT"],
        ["hand (left) 2", "Hand (Right) 2"],
        ["left_to_right", "right_to_left"],
        ["links", "rechts"],
        ["linkeHand", "rechteHand"],
        ["Gauche", "droite"],
        ["izquierda", "derecha"],
        ["вправо", "влево"],
        ["左手", "右手"],
        ["ho\u0308ger", "va\u0308nster"],  # decomposed, as macOS writes it
        ["L", "R"],
        ["eye_l", "eye_r"],
        ["b", "d"],
        ["p", "q"],
        list(string.ascii_lowercase),
        ["letter b", "letter d"],
        ["east", "west"],
        ["N", "E", "S", "W"],
        ["north_east", "north_west"],
        ["clockwise", "counter-clockwise"],
        ["anticlockwise", "clockwise"],
        ["cw", "ccw"],
        ["port", "starboard"],
        ["OD", "OS"],
        ["sinistral", "dextral"],
    ],
)
def test_left_and_right(names: list[str]) -> None:
    found = mirrored_classes(names)
    assert found is not None and found[0] != found[1] and set(found) <= set(names)


@pytest.mark.parametrize(
    "names",
    [
        ["daisy", "rose"],
        ["class_0", "class_1"],
        ["brightleft", "brightright"],  # whole words only
        ["copyleft", "copyright"],
        ["left", "straight"],  # nothing to confuse it with
        ["right whale", "blue whale"],
        ["port", "sherry"],
        ["East Siberian Laika", "West Siberian Laika"],
        ["a", "b", "c", "d"],  # grades
        ["vitamin b", "vitamin d"],
        ["B", "D"],  # capitals do not turn into each other
        list(string.ascii_uppercase),
        ["size_l", "size_m", "size_r"],
        ["E", "F", "W"],
        [],
    ],
)
def test_other_names(names: list[str]) -> None:
    assert mirrored_classes(names) is None
