"""A small drawn world with exact ground truth, in which a LumosX can be trained and judged.

looks    every face, attribute, thing and backdrop there is; a fifth of them is held out
story    who and what a scene shows, and how its caption says it: a function of a seed
draw     stories and looks as pixels
scenes   stories as prompt folders with their target clips
judge    who and what is seen in a clip, by comparison with drawings
score    what was seen, as numbers: identity, binding, swaps, motion, fidelity
"""
