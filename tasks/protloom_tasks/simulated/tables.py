"""Preferences of the twenty residues, whole numbers of this project's own making.

Scores are in hundredths of kT, higher is liked more. Their signs follow textbook preferences: Chou and Fasman (1978)
for helices and strands, Aurora and Rose (1998) for the ends of helices. Their sizes were set so that families look
natural and can be learnt, not measured: they say nothing about real proteins.
"""

from __future__ import annotations

import numpy as np

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
LETTERS = np.frombuffer(AMINO_ACIDS.encode(), dtype=np.uint8)

_TABLE = """
#    back  helix strand coil first last hydro charge size
A     99     30    -17    -13    -10     -5     30      0      2
C    -76    -17     17     -4      0      0     55      0      3
D    -35     -8    -42     21     55    -25    -90     -1      4
E     51     26    -26     -4     15    -20    -85     -1      6
F   -103      4     26    -17    -20      0     95      0      9
G    146    -47    -42     34      5     75    -15      0      0
H     -8     -4     -4      4      0     15    -45      0      7
I    -60      4     38    -26    -30    -20    100      0      7
K      2     21    -17      0    -20     35    -90      1      7
L    -60     26      8    -17    -35      0     95      0      7
M   -104     26     13    -17    -30      0     75      0      7
N     35    -17    -42     26     40     50    -75      0      4
P    112   -115    -89     38     45    -60    -40      0      4
Q     20     26    -13     -4     -5      5    -75      0      6
R    -33     26     -8     -4    -15     25    -80      1      8
S    122    -17    -13     17     55      5    -40      0      2
T     92    -21     26      4     45    -10    -20      0      4
V    -67     -4     42    -17    -30    -25     85      0      5
W   -129      0     17    -13    -10    -10     60      0     10
Y     15     -4     30     -4    -20      0     25      0      9
"""
# back: background composition; first, last: ends of a helix; hydro: hydrophobicity; size: bulk of the side chain
_VALUES = np.array([line.split()[1:] for line in _TABLE.split("\n")[2:-1]], dtype=np.int64).T

BACKGROUND, HELIX, STRAND, COIL, FIRST_TURN, LAST_TURN, HYDROPHOBIC, CHARGE, SIZE = _VALUES
