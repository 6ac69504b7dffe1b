"""Publication: how the lists of a run reach readers, even if processes are killed on the way.

A run is a directory of Parquet files with lists, `recommendations/run=<run id>/`. It goes through
these states. Each arrow to the right is one conditional write, so it happens once or not at all:

    (none) --claim--> open --seal--> sealed --manifest--> complete --pointer--> published
                       |                                     |                      |
                       | claimed by a writer                 | retention            | rollback, or
                       | of other inputs                     |                      | the next run
                       v                                     v                      v
                      open; the first writer               removed               complete
                      has lost the run

    step      file                  what it does
    claim     claims.py             `_claim.json`: one set of inputs at a time may write the run
    shards    shards.py             `part-*.parquet` and fingerprints, each with its own SHA-256;
                                    a second start of the run keeps intact files
    verify    verify.py             reads the shards back and counts what is wrong with the lists
    gates     integrity_gates.py    what is true of every correct list; no thresholds
              judgement_gates.py    whether the run is like other runs; thresholds in the YAML
    seal      claims.py             from now on no writer of other inputs can claim the run
    manifest  completion.py         `_manifest.json`, created if there is none: the run is complete;
                                    then files that it does not name are removed
    pointer   publish.py            `_latest.json` moves to the run if nobody moved it meanwhile
    tables    tables.py             tables for SQL readers follow the pointer: Delta, Iceberg, a
                                    symlink manifest; nobody changes the pointer's file again
                                    before every table is at the published run
    rollback  rollback.py           `_latest.json` moves back to an earlier run, and so do tables
    removal   retention.py          of old runs, never of one that is published or in progress

If the process dies between two steps, a second start of the same run continues: it keeps the files
of a run without a manifest, and it publishes a complete run that the pointer did not move to. If a
gate fails, the manifest is not written, and readers keep the run before. A reader who follows
`_latest.json` sees a complete run at every moment; a reader of a table sees the same run or, for a
moment, the one that was published just before.

The other files: `run_spec.py` (what a run writes and where), `list_tables.py` (lists as tables and
files), `list_lengths.py` and `pairs.py` (parts of verify), `gate_context.py` (thresholds and inputs
of the gates), `gate.py` (one gate's result), and `manifest.py`, `pointer.py` and `records.py` (the
JSON files). For SQL readers: `table_content.py` (what a table shows), and its formats
`delta_table.py`, `delta_checkpoint.py`, `iceberg_table.py` and `symlink_manifest.py`.
"""
