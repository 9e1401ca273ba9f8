"""Draws the sample prompt folders: faces, clothes, things and places, by rule and without chance.

    python samples/draw.py [FOLDER]     # default: the folder of this file

Coordinates are units of a hundredth of the height: "50,20 34,25" are two points of a path.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sketch import Sketch, at, dark, light, mix, pair, twins

WIDE = 225.0  # units across a background: 288 x 128 pixels, nearly a frame of 144 x 64


# -- faces --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What makes a face somebody's."""

    skin: str
    hair: str
    style: str
    ground: str
    collar: str
    eyes: str = "#3a2a20"
    beard: str | None = None
    freckles: bool = False
    glasses: str | None = None


def face(look: Look) -> Sketch:
    sketch = Sketch(look.ground)
    sketch.ellipse(50, 50, 44, 44, light(look.ground, 0.35))
    hair, skin, shade = look.hair, look.skin, mix(look.skin, "#b0503c", 0.32)
    if look.style == "bob":
        sketch.blob(pair("50,12 30,17 20,36 18,60 21,76 34,78"), dark(hair, 0.15))
    if look.style == "waves":
        sketch.blob(pair("50,10 28,16 18,36 19,52 13,66 18,86 36,90"), dark(hair, 0.15))
    sketch.blob(pair("50,83 36,84 20,90 14,108"), look.collar)
    sketch.blob(pair("50,90 42,84 42,66 50,62"), shade)
    sketch.blob(pair("50,98 40,86 37,82 33,86 40,97"), light(look.collar, 0.3))
    for side in (27.5, 72.5):
        sketch.ellipse(side, 52, 4.5, 6, skin)
        sketch.ellipse(side, 52, 2.2, 3.5, shade)
    sketch.blob(pair("50,20 34,25 27,44 30,62 40,75 50,78"), skin)
    if look.beard:
        sketch.blob(pair("50,60 42,57 34,58 28.5,47 27,58 31,73 41,84 50,87"), look.beard)
    _hair(sketch, look)
    for x in (40.5, 59.5):
        sketch.ellipse(x, 48, 4.6, 4.4, "#ffffff")
        sketch.ellipse(x, 48.3, 2.9, 3.3, look.eyes)
        sketch.ellipse(x, 48.5, 1.6, 1.9, "#17120f")
        sketch.ellipse(x + 1, 47, 0.9, 0.9, "#ffffff")
        sketch.arc(x, 45, 5.4, 4.5, 205, 335, dark(hair, 0.2), 1.7)
        sketch.ellipse(x + (x - 50) * 0.42, 58, 4, 2.7, mix(skin, "#e8604c", 0.3))
    sketch.arc(50, 54, 2.6, 3.2, 20, 160, shade, 1.5)
    if look.freckles:
        for x, y in at("37,56 40,58.5 35,59.5 63,56 60,58.5 65,59.5 48,51 52,51"):
            sketch.ellipse(x, y, 0.75, 0.75, mix(skin, "#9c5424", 0.6))
    sketch.blob(at("42.5,63 50,64.4 57.5,63 54.5,68.4 50,69.6 45.5,68.4"), "#9c2f36")
    sketch.blob(at("44.2,63.8 50,64.8 55.8,63.8 54,65.8 46,65.8"), "#ffffff")
    if look.beard:
        sketch.blob(pair("50,58.5 44,58.2 37,63 35.5,66 43,64.5 50,62.6"), dark(look.beard, 0.1))
    if look.glasses:
        for x in (40.5, 59.5):
            sketch.arc(x, 48.5, 7, 6.6, 0, 360, look.glasses, 1.5)
        sketch.arc(50, 48.5, 2.6, 2, 180, 360, look.glasses, 1.5)
    return sketch


def _hair(sketch: Sketch, look: Look) -> None:
    hair = look.hair
    if look.style == "bob":
        sketch.blob(pair("50,12 32,17 23,36 24,58 29,60 31,42 40,35 50,36"), hair)
        for x in (36.0, 44.0, 56.0, 64.0):
            sketch.stroke([(50 + (x - 50) * 0.6, 17), (x, 33)], light(hair, 0.22), 1.1)
    elif look.style == "waves":
        sketch.blob(at("50,11 31,16 22,34 23,56 28,60 33,40 46,30 58,25"), hair)
        sketch.blob(at("50,11 69,16 78,34 77,56 72,60 68,41 60,32 54,22"), hair)
        sketch.stroke(at("53,15 42,23 33,33"), light(hair, 0.22), 1.2)
    elif look.style == "short":
        sketch.blob(
            at("30,44 27,46 24,32 32,16 50,10 68,15 76,32 73,46 70,44")
            + at("68,34 58,30 46,33 36,28 32,34"),
            hair,
        )
    elif look.style == "curls":
        for i in range(13):
            angle = math.radians(180 + 180 * i / 12)
            sketch.ellipse(50 + 24 * math.cos(angle), 38 + 19 * math.sin(angle), 7.5, 7.5, hair)
        sketch.blob(pair("50,17 34,22 27,40 31,36 40,31 50,30"), hair)
        for x, y in at("32,26 42,20 53,20 64,24 70,33 28,36"):
            sketch.arc(x, y, 3, 3, 190, 350, light(hair, 0.3), 1.1)
    elif look.style == "sailor":
        for tuft in twins("30,36 25,38 24,52 28,52"):
            sketch.blob(tuft, hair)
        sketch.blob(pair("50,6 30,8 23,18 28,28 50,29"), "#f4f1e6", "#c9c3b0")
        sketch.blob(pair("50,26 34,26 27,29 28,35 50,36"), "#21375f")
        sketch.blob(pair("50,33 36,33 31,37 38,39 50,40"), "#15223d")
        sketch.stroke(at("50,27 50,34"), "#e8b740", 1.3)
        sketch.arc(50, 30.5, 3.4, 3.2, 20, 160, "#e8b740", 1.3)
        sketch.ellipse(50, 27, 1.4, 1.4, "#e8b740")


# -- clothes ------------------------------------------------------------------------------------


def raincoat(colour: str) -> Sketch:
    sketch, edge = Sketch(), dark(colour)
    sketch.blob(pair("33,24 22,30 11,58 9,74 19,77 31,48"), colour, edge)
    sketch.blob(pair("50,18 38,20 30,27 29,50 24,90 36,94 50,95"), colour, edge)
    sketch.blob(pair("50,28 40,24 35,12 43,6 50,5"), light(colour, 0.25), edge)
    sketch.blob(pair("50,26 43,22 41,14 50,11"), edge)
    sketch.stroke(at("50,28 50,94"), edge, 1.2)
    for y in (40, 54, 68):
        sketch.ellipse(54, y, 2.3, 2.3, light(colour, 0.75))
        sketch.ellipse(54, y, 1.1, 1.1, edge)
    for side in (34, 66):
        sketch.stroke([(side - 6, 66), (side + 6, 66)], edge, 2.2)
    for cuff in twins("9,69 19,72"):
        sketch.stroke(cuff, edge, 1.6)
    return sketch


def straw_hat(colour: str, band: str) -> Sketch:
    sketch, edge = Sketch(), dark(colour, 0.4)
    sketch.ellipse(50, 66, 46, 17, edge)
    sketch.ellipse(50, 65, 45, 16, colour)
    for ring in (38, 31):
        sketch.arc(50, 65, ring, ring * 0.36, 0, 360, mix(colour, edge, 0.4), 0.9)
    sketch.blob(pair("50,22 36,25 28,42 26,60 36,67 50,69"), light(colour, 0.2), edge)
    sketch.polygon(pair("50,57 38,55.5 27.2,51 26,61 37,66.5 50,68.5"), band)
    for y in (32, 41):
        sketch.arc(50, y - 8, 20, 12, 35, 145, mix(colour, edge, 0.4), 0.9)
    sketch.blob(at("72,58 82,52 84,60 90,66 79,66"), band, dark(band))
    return sketch


def cap(colour: str) -> Sketch:
    sketch, edge = Sketch(), dark(colour)
    sketch.blob(at("58,60 76,57 95,66 93,74 74,70 50,71"), dark(colour, 0.45))
    sketch.blob(at("14,66 13,48 24,30 45,24 66,32 75,50 75,65 45,70"), colour, edge)
    sketch.stroke(at("45,25 47,46 46,68"), edge, 1.1)
    sketch.arc(45, 66, 22, 40, 190, 268, edge, 1.1)
    sketch.ellipse(45, 24, 3.4, 2.4, light(colour, 0.3))
    sketch.stroke(at("15,64 45,69 74,64"), light(colour, 0.3), 2.4)
    sketch.ellipse(60, 52, 6, 6, "#f6d55c")
    sketch.stroke(at("57.5,52 59.5,54.5 63,49.5"), edge, 1.4)
    return sketch


def tall_hat(colour: str, band: str) -> Sketch:
    sketch, edge = Sketch(), dark(colour)
    sketch.blob(pair("50,9 40,7 28,10 19,20 20,34 30,42 31,70 50,74"), colour, edge)
    for fold in (*twins("44,64 42,40"), *twins("34,62 32,42")):
        sketch.stroke(fold, edge, 1.2)
    sketch.polygon(pair("50,72 31,68 30,86 50,90"), band)
    sketch.stroke(at("30.5,70 50,74 69.5,70"), dark(band), 1.2)
    return sketch


def feathered_hat(colour: str, feather: str) -> Sketch:
    sketch, edge = Sketch(), dark(colour)
    sketch.blob(at("60,56 66,30 82,10 96,8 94,26 82,44 68,60"), feather, dark(feather))
    sketch.stroke(at("63,57 74,34 92,13"), light(feather, 0.5), 1.4)
    for x, y in at("70,40 77,30 84,22"):
        sketch.stroke([(x, y), (x + 9, y + 1)], dark(feather), 1)
    sketch.blob(pair("44,35 36,31 28,37 24,62 44,68", 44), colour, edge)
    sketch.blob(at("4,60 24,62 44,65 66,62 88,54 84,68 62,76 26,75"), light(colour, 0.12), edge)
    sketch.stroke(at("21,59 44,63 66,59"), "#e6b54a", 3)
    return sketch


def dress(colour: str, dots: str) -> Sketch:
    sketch, edge = Sketch(), dark(colour)
    sketch.blob(pair("36,12 27,14 18,26 24,34 35,27"), light(colour, 0.15), edge)
    sketch.blob(pair("50,19 42,16 36,10 32,22 36,44 18,90 32,95 50,96"), colour, edge)
    for x in (30.0, 41.0, 59.0, 70.0):
        sketch.stroke([(50 + (x - 50) * 0.45, 52), (x, 90)], edge, 1)
    for x, y in at("43,28 57,28 50,36 38,64 50,60 62,64 29,82 43,78 57,78 71,82"):
        sketch.ellipse(x, y, 2.2, 2.2, dots)
    sketch.polygon(pair("50,49 36,46 35.5,42 50,44"), dots)
    sketch.blob(at("50,46 43,41 43,52"), light(dots, 0.3), edge)
    sketch.blob(at("50,46 57,41 57,52"), light(dots, 0.3), edge)
    return sketch


def apron(colour: str, other: str) -> Sketch:
    sketch, edge = Sketch(), dark(colour, 0.4)
    sketch.arc(50, 18, 12, 14, 180, 360, edge, 2.6)
    for string in twins("23,46 10,51 6,66"):
        sketch.stroke(string, edge, 2.6)
    shape = pair("37,17 36,36 24,44 22,88 27,94")
    sketch.polygon([(x + (x - 50) * 0.05, y + (y - 55) * 0.03) for x, y in shape], edge)
    sketch.polygon(shape, colour)
    sketch.checks(shape, other, 7)
    sketch.polygon(pair("50,58 36,58 37,74 50,76"), light(other, 0.2))
    sketch.stroke(at("36,58 64,58"), edge, 2)
    return sketch


def vest(colour: str, lining: str) -> Sketch:
    sketch, edge = Sketch(), dark(colour)
    sketch.blob(pair("50,28 40,10 36,40 50,60"), lining)
    for half in twins("49,54 40,26 37,7 26,10 28,30 20,46 20,80 30,86 42,90 49,84"):
        sketch.blob(half, colour, edge)
    for seam in twins("48,52 39,27 36,10"):
        sketch.stroke(seam, "#e6b54a", 1.8)
    for pocket in twins("39,70 26,68"):
        sketch.stroke(pocket, "#e6b54a", 2)
    for y in (60, 70, 80):
        sketch.ellipse(46, y, 2, 2, "#f6d777")
    return sketch


def boots(colour: str) -> Sketch:
    sketch, edge = Sketch(), dark(colour, 0.5)
    for right in (-23.0, 22.0):
        leg = at("36,12 54,11 53,48 56,64 71,73 73,84 54,85 37,84 36,60", right)
        sketch.blob(leg, colour, edge)
        sketch.polygon(at("36,83 73,83 72,89 55,89 54,87 50,91 37,91", right), edge)
        sketch.blob(at("34,11 55,9 55,23 35,24", right), light(colour, 0.25), edge)
        for y in (34, 42, 50):
            sketch.stroke([(45 + right, y), (52 + right, y - 2)], light(colour, 0.6), 1.5)
    return sketch


# -- things -------------------------------------------------------------------------------------


def picnic_basket() -> Sketch:
    sketch, straw, edge = Sketch(), "#c98d48", "#6b4320"
    sketch.arc(50, 46, 31, 38, 180, 360, edge, 5)
    sketch.arc(50, 46, 31, 38, 180, 360, "#a86f33", 2.8)
    sketch.blob(at("30,46 38,28 50,33 62,27 72,46"), "#f3e4c0", "#b79a5d")
    sketch.ellipse(33, 41, 9, 9, "#d7383f")
    sketch.stroke(at("33,33 35,28"), "#5b3a1d", 1.6)
    sketch.ellipse(66, 42, 8, 8, "#7cae3a")
    sketch.polygon(at("11,46 89,46 81,91 19,91"), straw)
    for row in range(5):
        for column in range(8):
            x, y = 17.0 + column * 9 + (row % 2) * 4, 52 + row * 8.4
            if 15 + row * 1.6 < x < 85 - row * 1.6:
                weave = edge if (row + column) % 2 else "#e6b877"
                sketch.arc(x, y + 2, 4, 3.2, 190, 350, weave, 1.7)
    sketch.stroke(at("11,46 89,46"), edge, 5)
    sketch.stroke(at("12,45.4 88,45.4"), "#e0ad68", 2.4)
    sketch.stroke(at("19,91 81,91"), edge, 3)
    sketch.polygon(at("56,44 80,44 75,66 60,62"), "#e5484d")
    for x, y in at("62,48 70,48 66,55 73,57 64,60"):
        sketch.ellipse(x, y, 2, 2, "#ffffff")
    return sketch


def fruit_crate() -> Sketch:
    sketch, edge = Sketch(), "#7a4e24"
    fruit = [(24, 40, "#e2553d"), (41, 35, "#f2a33a"), (59, 36, "#e2553d"), (76, 40, "#8fbf3f")]
    fruit += [(33, 47, "#f2c641"), (50, 47, "#8fbf3f"), (68, 48, "#f2a33a")]
    for x, y, colour in fruit:
        sketch.ellipse(x, y, 10.5, 10.5, dark(colour))
        sketch.ellipse(x, y, 9.6, 9.6, colour)
        sketch.ellipse(x - 3, y - 3.5, 2.6, 2, light(colour, 0.6))
        sketch.stroke([(x, y - 9), (x + 1.5, y - 12)], "#5b3a1d", 1.4)
        sketch.blob([(x + 1.5, y - 11), (x + 6, y - 14), (x + 5.5, y - 10)], "#4f8f3a")
    for y in (52, 65, 78):
        sketch.box(10, y, 80, 11, "#c89357")
        sketch.stroke([(10, y + 11), (90, y + 11)], edge, 1.2)
        sketch.stroke([(20, y + 4), (46, y + 5)], "#b07c43", 1)
        sketch.stroke([(56, y + 7), (80, y + 6)], "#b07c43", 1)
    for x in (10, 83):
        sketch.box(x, 49, 7, 43, "#a8733a")
        for y in (57, 70, 83):
            sketch.ellipse(x + 3.5, y, 1.2, 1.2, edge)
    return sketch


def spotted_dog() -> Sketch:
    sketch, coat, spot, edge = Sketch(), "#f3dfc1", "#7a4a2b", "#8b6a4c"
    sketch.stroke(at("22,62 12,50 13,36"), edge, 6)
    sketch.stroke(at("22,62 12,50 13,36"), coat, 4)
    for x in (28, 38, 60, 69):
        sketch.blob(at("-4.5,66 4.5,66 5,90 6,94 -4,94", x), coat, edge)
    sketch.blob(at("20,58 28,49 50,50 66,46 76,58 72,74 48,74 26,76"), coat, edge)
    for x, y, rx, ry in ((34, 59, 7, 5.5), (52, 66, 6, 4.5), (26, 68, 3.5, 3), (62, 55, 3.2, 3)):
        sketch.ellipse(x, y, rx, ry, spot)
    sketch.blob(at("58,34 62,20 76,15 88,22 97,38 92,48 76,52 63,47"), coat, edge)
    sketch.blob(at("84,20 92,26 91,36 82,37 79,27"), spot)
    sketch.blob(at("66,20 57,20 51,36 56,49 64,42 69,30"), spot, dark(spot))
    sketch.ellipse(84.5, 30, 2.6, 2.9, "#1d1512")
    sketch.ellipse(85.3, 29, 0.9, 0.9, "#ffffff")
    sketch.ellipse(72, 30.5, 2.4, 2.8, "#1d1512")
    sketch.ellipse(72.8, 29.5, 0.9, 0.9, "#ffffff")
    sketch.ellipse(94, 37, 4.4, 3.3, "#2a1c17")
    sketch.arc(87, 41, 6, 5, 20, 150, edge, 1.5)
    sketch.blob(at("84,46 90,45 90,53 86,55"), "#e76f74")
    sketch.stroke(at("62,49 70,53 78,53"), "#d3423e", 3.4)
    sketch.ellipse(71, 57, 2.6, 2.6, "#f2c641")
    return sketch


# -- places -------------------------------------------------------------------------------------


def autumn_park() -> Sketch:
    sketch = Sketch("#bfe3f2", WIDE)
    for y in range(0, 56, 4):
        sketch.box(0, y, WIDE, 4, mix("#8cc8ea", "#fdeccb", y / 56))
    sketch.ellipse(186, 20, 9, 9, "#fff3b8")
    sketch.blob(at("-10,60 30,44 80,54 130,42 190,52 240,44 240,80 -10,80"), "#9dbb74")
    sketch.box(0, 62, WIDE, 38, "#c5a54a")
    sketch.blob(at("-10,64 60,58 140,64 240,59 240,110 -10,110"), "#b9a548")
    sketch.polygon(at("104,63 114,63 170,100 62,100"), "#e8d3a4")
    trees = [(18, 42, "#d9682b", 15), (52, 36, "#e3a02f", 18), (92, 46, "#c14d2c", 10)]
    trees += [(132, 46, "#e3a02f", 10), (168, 36, "#cf5a2a", 18), (208, 41, "#e0b43a", 16)]
    for x, y, colour, r in trees:
        sketch.box(x - r * 0.17, y, r * 0.34, r * 2, "#6d4a2f")
        for dx, dy in at("-0.55,0.25 0.55,0.25 0,-0.4 -0.3,0.5 0.3,0.5"):
            sketch.ellipse(x + dx * r, y + dy * r, r * 0.68, r * 0.62, dark(colour, 0.12))
        for dx, dy in at("-0.4,0.05 0.35,0.1 0,-0.45"):
            sketch.ellipse(x + dx * r, y + dy * r, r * 0.5, r * 0.42, light(colour, 0.18))
    for i in range(46):  # fallen leaves, scattered by two steps that share no period
        leaf = ("#cf5a2a", "#e8b53a", "#a8432a")[i % 3]
        sketch.ellipse((i * 61.8) % WIDE, 70 + (i * 17.3) % 28, 1.6, 0.9, leaf)
    sketch.stroke(at("176,78 206,78"), "#6d4a2f", 3)
    sketch.stroke(at("176,71 206,71"), "#7d5836", 3)
    for x in (179, 203):
        sketch.stroke([(x, 70), (x, 88)], "#4a3322", 2)
    return sketch


def market_street() -> Sketch:
    sketch = Sketch("#a9d6ee", WIDE)
    for x, r in at("40,8 52,10 64,7 160,8 172,6"):
        sketch.ellipse(x, 12, r * 1.3, r * 0.6, "#f4fafc")
    sketch.box(0, 70, WIDE, 30, "#cdb899")
    for row, y in enumerate((74, 80, 88, 97)):
        for i in range(18):
            cobble = "#bca584" if (i + row) % 3 else "#d9c7ab"
            sketch.ellipse(i * 13.5 + (row % 2) * 6.5, y, 5.6, 2.2, cobble)
    walls = [(-4, 22, "#d98f6f"), (38, 12, "#e9c98b"), (82, 26, "#8fb0b5"), (124, 16, "#d9a5a0")]
    walls += [(166, 10, "#b7bf8a"), (206, 24, "#d08e62")]
    for x, top, colour in walls:
        sketch.box(x, top, 42, 72 - top, colour)
        sketch.polygon([(x - 2, top), (x + 21, top - 12), (x + 44, top)], "#9a4f3c")
        for left in (x + 7, x + 25):
            sketch.box(left, top + 7, 10, 14, "#fdf3d8")
            sketch.box(left + 1.5, top + 8.5, 7, 11, "#5d7f94")
            sketch.box(left + 4.5, top + 8, 1, 12, "#fdf3d8")
    stalls = [(14, "#d3423e"), (70, "#3f8f5f"), (128, "#3c6fb5"), (180, "#d98a2b")]
    for x, colour in stalls:
        for post in (x + 2, x + 36):
            sketch.stroke([(post, 46), (post, 80)], "#6d4a2f", 1.8)
        sketch.box(x, 66, 38, 16, "#a8733a")
        for i in range(5):
            fruit = ("#e2553d", "#f2c641", "#8fbf3f")[(i + x) % 3]
            sketch.ellipse(x + 5 + i * 7, 64.5, 3.8, 3.4, fruit)
        width = 44 / 6
        for i in range(6):
            edge, stripe = x - 3 + i * width, "#fbf4e4" if i % 2 else colour
            sketch.box(edge, 38, width, 13, stripe)
            sketch.ellipse(edge + width / 2, 51, width / 2, 2.6, stripe)
    for i in range(19):  # bunting
        flag = ("#d3423e", "#f2c641", "#3c6fb5")[i % 3]
        sag = 8 + 5 * abs(math.sin(i * 12.5 / 36))
        sketch.polygon([(i * 12.5 + dx, sag + dy) for dx, dy in at("0,0 7,0.5 3.5,7")], flag)
    return sketch


# -- scenes -------------------------------------------------------------------------------------

WOMAN = Look("#f6cfae", "#b8472a", "bob", "#9fd3c7", "#2f6f73", "#3f7a4c", freckles=True)
MAN = Look("#d9a074", "#3a2619", "short", "#f2cf8d", "#7a3e35", beard="#4a3020")
SAILOR = Look("#eab792", "#e9e6dc", "sailor", "#8fbfe0", "#2b4a7c", "#2f6296", beard="#f3f0e6")
FLORIST = Look("#8a5a3c", "#221815", "waves", "#f3c7c4", "#4f8f5a", "#2b1a12")
BAKER = Look("#f3c7a0", "#d8a645", "short", "#bcd3a8", "#c95b4a", "#4a6f9c", glasses="#4a3428")
FIDDLER = Look("#c98a5c", "#5a2f1c", "curls", "#c9b7e0", "#3f4a7a", "#3a2a1a")

Draw = Callable[[], Sketch]
SCENES: dict[str, tuple[str, dict[str, Draw]]] = {
    "two-friends": (
        "two-friends;In an autumn park, a young woman in a yellow raincoat and a straw hat and a "
        "bearded man in a blue raincoat and a green cap share a picnic basket.",
        {
            "background/autumn park": autumn_park,
            "objects/picnic basket": picnic_basket,
            "subjects/1/face_young woman": lambda: face(WOMAN),
            "subjects/1/yellow raincoat": lambda: raincoat("#f2c12e"),
            "subjects/1/straw hat": lambda: straw_hat("#ecd08a", "#c8443c"),
            "subjects/2/face_bearded man": lambda: face(MAN),
            "subjects/2/blue raincoat": lambda: raincoat("#3f74c4"),
            "subjects/2/green cap": lambda: cap("#3f8f56"),
        },
    ),
    "one-face": (
        "one-face;An old sailor smiles at the camera on a windy deck.",
        {"subjects/1/face_old sailor": lambda: face(SAILOR)},
    ),
    "market-trio": (
        "market-trio;On a market street, a florist in a green dress, a baker in a checkered apron "
        "and a tall hat, and a fiddler in a purple vest, a feathered hat and brown boots dance "
        "round a fruit crate and a spotted dog.",
        {
            "background/market street": market_street,
            "objects/fruit crate": fruit_crate,
            "objects/spotted dog": spotted_dog,
            "subjects/1/face_florist": lambda: face(FLORIST),
            "subjects/1/green dress": lambda: dress("#4f9f62", "#f6d0d6"),
            "subjects/2/face_baker": lambda: face(BAKER),
            "subjects/2/checkered apron": lambda: apron("#f7e6cf", "#d0524a"),
            "subjects/2/tall hat": lambda: tall_hat("#cfe2ef", "#4a7fb0"),
            "subjects/3/face_fiddler": lambda: face(FIDDLER),
            "subjects/3/purple vest": lambda: vest("#7a4aa0", "#e9d8f2"),
            "subjects/3/feathered hat": lambda: feathered_hat("#5b6b3a", "#d3423e"),
            "subjects/3/brown boots": lambda: boots("#8a5630"),
        },
    ),
    "empty-square": ("An empty town square at dawn, with long shadows and a few pigeons.", {}),
}


def main(target: Path) -> None:
    for name, (caption, pictures) in SCENES.items():
        folder = target / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "caption.txt").write_text(caption + "\n", encoding="utf-8")
        for place, draw in pictures.items():
            path = folder / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # things are cut-outs, so that transparency is part of the samples
            draw().picture(cut_out=place.startswith("objects/")).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
