"""Publication: how the lists of a run reach readers, even if processes are killed on the way.

A run is a directory of Parquet files with lists, `recommendations/run=<run id>/`. Its states are
open, sealed, complete, published and removed: docs/architecture.md draws them, and says what
happens if a process dies in one of them. The files, in the order in which a run uses them:

    claim     claims.py             `_claim.json`: one set of inputs at a time may write the run
    shards    shards.py             `part-*.parquet` and fingerprints, each with its own SHA-256;
                                    a second start of the run keeps intact files
    verify    verify.py             counts what is wrong with the lists of one file; the files are
                                    read back by `visrec/recommend/readback.py`
    gates     integrity_gates.py    what is true of every correct run; no thresholds
              judgement_gates.py    whether the run is like other runs; thresholds in the YAML
              held_out_gates.py     those of them that ask whether the model is better than the
                                    baselines
    seal      claims.py             from now on no writer of other inputs can claim the run
    manifest  completion.py         `_manifest.json`, created if there is none: the run is complete;
                                    then files that it does not name are removed
    pointer   publish.py            `_latest.json` moves to the run if nobody moved it meanwhile
    tables    tables.py             tables for SQL readers follow the pointer: Delta, Iceberg, a
                                    symlink manifest
    rollback  rollback.py           `_latest.json` moves back to an earlier run, and so do tables
    forget    forget.py             removes users from the runs that are kept
    removal   retention.py          of old nights, unfinished ones included; never of the published
                                    run, the one before it, or a sealed one without a manifest

A reader who follows `_latest.json` sees a complete run at every moment; a reader of a table sees
the same run or, for a moment, the one that was published just before.

The other files: `run_spec.py` (what a run writes and where), `list_tables.py` (lists as tables and
files), `list_lengths.py` and `pairs.py` (parts of verify), `gate_context.py` (thresholds and inputs
of the gates), `gate.py` (one gate's result), `manifest.py`, `pointer.py` and `records.py` (the JSON
files), and `prometheus.py` (what is published, as metrics). For SQL readers: `table_content.py`
(what a table shows), and its formats `delta_table.py`, `delta_checkpoint.py`, `iceberg_table.py`
and `symlink_manifest.py`.
"""
