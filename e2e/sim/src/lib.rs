//! Nothing: the simulation is a test, `tests/sim`, so that no program is built with it. See docs/adr/0003-simulation.md.
