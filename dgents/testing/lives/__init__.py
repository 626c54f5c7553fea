"""Random lives of one actor, with everything that can go wrong in them, held against a plain model.

A `Script` is data: lives, each of them steps and an end. `generate` makes one up, `stage` plays one life of it on a
real actor, `process` plays one in a child that is killed, `explain` asks whether one serial order accounts for all that
was seen, `explore` plays a script and judges it, and `shrink` makes one that fails short.
"""
