"""The paper's ablations: which part of the system is worth how much.

    variants    what each row of each table changes
    subjects    whom they are trained on: the cartoon cast, or built datasets
    jobs        one variant, one subject, one seed: train, ask, keep the result
    tables      means, intervals, differences from the full system
    study       all of it: `run_study`

`pvchat ablate` is the command.
"""
