"""How fast genrpc is, and beside it other ways to call a function in another process.

    python -m benchmarks                    every scenario, every peer that is installed
    python -m benchmarks targets            what genrpc is to reach, and whether it does
    python -m benchmarks scaling            what a call costs as the work grows
    python -m benchmarks report FILE        the tables and plots of figures saved before

`docs/performance.md` says what is measured, how, and how to read it. The parts:

- `scenarios`: what is measured. `peers`: who is. Neither knows the other.
- `runner`: one measurement is one server process (or eight) and one client process, both new.
- `client`, `serve`: what runs in them.
- `report`, `plot`, `targets`: what is made of the figures.
"""
