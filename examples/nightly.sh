#!/bin/sh
# One night, for cron: as nightly.crontab starts it. Flags go to `visrec nightly`.
#
# A failure (1) is followed by two more starts of the same night, which continue where the one before
# stopped. Nothing else is: a refused night (2), one that a gate holds back (3), and one that is
# complete while another run stays published (4) would end the same way. The exit code is that of
# the last start.
date=$(date -u +%F) # once, so that a start after midnight belongs to the same night
for attempt in 1 2 3; do
  code=0
  visrec nightly --as_of "$date" --quiet "$@" || code=$?
  [ "$code" -eq 1 ] || break
  [ "$attempt" -eq 3 ] || sleep "${RETRY_S:-300}"
done
exit "$code"
