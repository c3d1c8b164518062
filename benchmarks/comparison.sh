#!/usr/bin/env bash
# The comparison of results/comparison: every contender on short sets, on one of long documents and on questions, the two
# prefix methods on two more sets of long documents.
#
#     benchmarks/comparison.sh FOLDER_OF_SETS [SEEDS] [WORKERS]
#
# Goes on where it was stopped; finished runs, which are committed, are not repeated. Twelve hours on one CPU core.
set -euo pipefail
output="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/results/comparison"
seeds="${2:-2}"
workers="${3:-1}"
cd "$1"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

compare() { attentune compare "$@" --output "$output" --add --seeds "$seeds" --workers "$workers" --precision bfloat16; }

short=(--rows 1000 --test-rows 600 --epochs 3 --rates 2 --max-length 64)
compare trec6 stsb conll2003 tweet_stance "${short[@]}"
few=(--rows 32 --epochs 20 --batch-size 8 --rates 2)
compare agnews "${few[@]}" --test-rows 300 --max-length 64
compare fewglue_rte "${few[@]}" --test-rows 600 --max-length 128
compare squad_dev --rows 1000 --test-rows 200 --epochs 1 --rates 1 --max-length 256

# Dropout of attention weights alone would take more than half of the time.
long=(--batch-size 8 --max-length 512 --attention-dropout 0)
prefixes=(--methods prefix_propagation,prefix_tuning)
compare newsgroups20 "${long[@]}" --epochs 1 --rows 1000 --test-rows 300 --rates 2
compare movie_reviews_long "${long[@]}" "${prefixes[@]}" --epochs 1 --rows 1000 --test-rows 300 --rates 2
compare hyperpartisan "${long[@]}" "${prefixes[@]}" --epochs 3 --rows 240 --test-rows 300 --rates 1
