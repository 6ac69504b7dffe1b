"""Publication: how the lists of a run reach readers, even if processes are killed on the way.

A run is a directory of Parquet shards, `recommendations/run=<run id>/`. It goes through these
states. Each arrow to the right is one conditional write, so it happens once or not at all:

    (none) --claim--> open --seal--> sealed --manifest--> complete --pointer--> published
                       |                                     |                      |
                       | another writer, other inputs        | retention            | rollback, or
                       v                                     v                      v the next run
                      open, and the first writer has lost  removed               complete

    step      file                  what it does
    claim     claims.py             `_claim.json`: one set of inputs at a time may write the run
    shards    shards.py             `part-*.parquet` and fingerprints, each with its own SHA-256;
                                    a second start keeps the shards that are intact
    verify    verify.py             reads the shards back and counts what is wrong with the lists
    gates     integrity_gates.py    what every correct list has; no thresholds
              judgement_gates.py    whether the run is like other runs; thresholds in the YAML
    seal      claims.py             from here on nobody with other inputs can take the run
    manifest  completion.py         `_manifest.json`, created only where there is none: the run is
                                    complete, and files that it does not name are removed
    pointer   publish.py            `_latest.json` moves to the run if nobody moved it meanwhile
    rollback  rollback.py           `_latest.json` moves back to an earlier run
    prune     retention.py          old runs are removed, never one that is published or in progress

If the process dies between two steps, a second start of the same run goes on: shards without a
manifest are taken up, a complete run whose pointer did not move is published. If a gate fails, the
manifest is not written, and readers keep the run before. A reader who follows `_latest.json` sees a
complete run at every moment.

The other files: `run_spec.py` (what a run writes and where), `list_tables.py` (lists as tables and
files), `list_lengths.py` and `pairs.py` (parts of verify), `gate_context.py` (thresholds and inputs
of the gates), `gate.py` (one result), `manifest.py`, `pointer.py`, `records.py` (the JSON files).
"""
