#!/usr/bin/env bash
# The comparison of results/comparison: every contender on short sets, the two prefix methods on long documents.
#
#     benchmarks/comparison.sh FOLDER_OF_SETS [SEEDS]
#
# Goes on where it was stopped; finished runs, which are committed, are not repeated. Hours on one CPU core.
set -euo pipefail
output="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/results/comparison"
seeds="${2:-1}"
cd "$1"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

compare() { attentune compare "$@" --output "$output" --add --seeds "$seeds" --precision bfloat16; }

short=(--rows 1000 --test-rows 600 --epochs 3 --rates 2 --max-length 64)
for set in trec6 stsb conll2003 tweet_stance; do compare "$set" "${short[@]}"; done
compare fewglue_rte --rows 32 --test-rows 600 --epochs 20 --batch-size 8 --rates 2 --max-length 128

# Dropout of attention weights alone would take more than half of the time.
long=(--batch-size 8 --max-length 512 --attention-dropout 0 --methods prefix_propagation,prefix_tuning)
compare newsgroups20 "${long[@]}" --epochs 2 --rows 400 --test-rows 300 --rates 2
compare movie_reviews_long "${long[@]}" --epochs 2 --rows 400 --test-rows 300 --rates 2
compare hyperpartisan "${long[@]}" --epochs 3 --rows 240 --test-rows 300 --rates 1
compare squad_dev --rows 500 --test-rows 200 --epochs 2 --rates 1 --max-length 256 \
    --methods tiny_attention,pasta,prefix_propagation,attempt,kernel_mix,lora,probe,full
