"""Class names that differ in left and right only: a mirror turns one class into the other."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence

# Words that a mirror exchanges, in pairs.
PAIRS = """
left right, lefthand righthand, lefthanded righthanded, leftward rightward, leftwards rightwards, lh rh, lt rt
links rechts, linke rechte, linker rechter, linkes rechtes, linken rechten, linksum rechtsum
gauche droite, gauche droit, izquierda derecha, izquierdo derecho, esquerda direita, esquerdo direito
sinistra destra, sinistro destro, sinister dexter, sinistral dextral, stânga dreapta, esquerra dreta
lewo prawo, lewy prawy, lewa prawa, levo desno, levá pravá, levý pravý, vlevo vpravo, bal jobb, vasen oikea
vänster höger, venstre høyre, venstre højre, sol sağ, trái phải, kiri kanan, aristera dexia, αριστερά δεξιά
влево вправо, левый правый, левая правая, левое правое, слева справа, лево право, ліво право
左 右, 왼쪽 오른쪽, 왼손 오른손, يسار يمين, שמאל ימין, बाएं दाएं
clockwise counterclockwise, clockwise anticlockwise, cw ccw, port starboard, backbord steuerbord, od os
"""
# Points of the compass are left and right of a map or an arrow, but not in names such as East Siberian Laika.
COMPASS = """
east west, ost west, est ouest, este oeste, oost west, eastbound westbound, northeast northwest, southeast southwest
ne nw, se sw
"""
WITH_COMPASS = frozenset("north south nord sud süd norte sur to facing heading wind arrow arrows".split())
# Letters, each pair with the other letters that may stand in their place: others make them names of grades.
LETTERS = (("b", "d", "bdpq"), ("p", "q", "bdpq"), ("l", "r", "lr"), ("e", "w", "news"))
BESIDE_LETTERS = frozenset("letter char character lower lowercase small glyph".split())
ALPHABET = 20  # letters that are classes, from which on they are not grades such as a, b, c, d

Words = tuple[str, ...]


def mirrored_classes(names: Sequence[str]) -> tuple[str, str] | None:
    """The first two class names that are equal but for left and right, in one of many languages, or None.

    Only whole words count: `turn-left`, `TurnLeft` and `left` have one, `brightleft` has none.
    """
    classes = {_words(name): name for name in reversed(names)}
    for name in names:
        for other in _mirrored(_words(name), classes.keys()):
            if other in classes and classes[other] != name:
                return name, classes[other]
    return None


def _words(name: str) -> Words:
    """The words of a name in lower case, but for single letters; a capital or a digit begins another word."""
    text = unicodedata.normalize("NFC", name)
    found = re.findall(r"[左右]|[A-Z]?[^\W\d_A-Z左右]+|[A-Z]+(?![^\W\d_A-Z])|[A-Z]|\d+", text)
    words = " ".join(word if len(word) == 1 else word.lower() for word in found)
    return tuple(re.sub(r"\b(counter|anti) (?=clockwise)", r"\1", words).split())


def _mirrored(words: Words, classes: Collection[Words]) -> Iterator[Words]:
    """What a name becomes when left and right are exchanged, for each pair of words in it."""
    pairs = _pairs(PAIRS)
    if set(words) <= set(COMPASS.replace(",", " ").split()) | WITH_COMPASS:
        pairs += _pairs(COMPASS)
    yield from (_exchanged(words, *pair) for pair in pairs if not set(pair).isdisjoint(words))
    for first, second, others in LETTERS:
        for place, word in enumerate(words):
            if word.lower() not in (first, second) or (word.isupper() and first in "bp"):
                continue
            rest = words[:place], words[place + 1 :]
            letters = {w[place].lower() for w in classes if (w[:place], w[place + 1 :]) == rest and len(w[place]) == 1}
            alphabet = first in "bp" and len(letters) >= ALPHABET
            plain = first not in "bp" or set(rest[0] + rest[1]) <= BESIDE_LETTERS
            if plain and (alphabet or letters <= set(others)):
                cased = [letter.upper() if word.isupper() else letter for letter in (first, second)]
                yield (*rest[0], cased[word == cased[0]], *rest[1])


def _pairs(text: str) -> list[tuple[str, str]]:
    first_and_second = (pair.split() for pair in text.replace("\n", ",").split(",") if pair)
    return [(first, second) for first, second in first_and_second]


def _exchanged(words: Words, first: str, second: str) -> Words:
    return tuple({first: second, second: first}.get(word, word) for word in words)
