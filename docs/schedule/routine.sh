#!/bin/sh
# One run of the monthly routine, for cron, a container or CI; run it in a clone with a git remote and a DVC remote.
# BRANCH is pushed to PUSH_URL, by default the present branch to origin. Nothing is committed if nothing changed.
set -eu
PATH="$PATH:$PWD/.venv/bin" # cron activates no environment; a container has its own
code=0 upstream=0

dvc pull --run-cache --allow-missing       # what earlier runs have made; the first time, nothing
tipline month next || code=$?
case $code in
  0) ;;
  5) dvc repro ;;                          # not published yet; a version promoted meanwhile scores now
  *) exit "$code" ;;
esac
tipline upstream --fetch || upstream=$?    # months that were published again; a failure does not keep back the rest

dvc push --run-cache
git add params.yaml dvc.lock
if ! git diff --cached --quiet -- params.yaml dvc.lock; then
  git commit --quiet -m "Score $(date -u +%Y-%m-%d) [skip ci]" -- params.yaml dvc.lock
  git push --quiet "${PUSH_URL:-origin}" "HEAD:${BRANCH:-$(git branch --show-current)}"
fi
exit "$upstream"
