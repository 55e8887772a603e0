"""A simulated proteome whose contacts, secondary structure, families and stability are known.

Nothing here is evidence about real proteins: it is there so that training, probes and tests can run offline, in
minutes, against truths that no annotation error blurs.
"""

VERSION = 1
"""Version of the data: changes whenever the same (n, seed) would give other sequences."""
