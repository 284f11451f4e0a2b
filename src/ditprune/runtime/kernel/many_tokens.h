// Tokens lie in the lanes of vectors, and each nonzero is broadcast: one multiply-add for every
// vector of tokens, no gather and no branch on the pattern. The inputs are transposed into slabs of
// [BLOCK columns][tokens] that stay in the L1 cache while the rows of the weight pass over them;
// the sums of one tile of rows × tokens stay in L2.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>

#include "threads.h"
#include "vectors.h"
#include "weight.h"

namespace ditprune {

constexpr int64_t MAX_VECTORS = 8;  // of tokens in a tile: the sums of one row fill 8 registers
constexpr int64_t MAX_TILE_ROWS = 256;
constexpr int64_t TASKS_PER_THREAD = 4;  // smaller tiles of rows where there would be fewer
constexpr int64_t TILES_PER_THREAD = 4;  // of tokens, where they cannot be dealt out evenly
constexpr int64_t SLAB_BYTES = 4 << 20;  // inputs transposed at a time where threads share them
constexpr int64_t APART_BYTES = 64 << 20;  // all threads share them where their own took more

// Adds the nonzeros of some rows of one block to their sums [rows][V · W tokens].
template <int W, int V, class Value>
void add_block(const Value* values, const uint8_t* columns, const uint8_t* counts, int64_t num_rows,
               const float* slab, float* sums, const float* initial) {
    // A chain of dependent additions to few registers would wait for itself.
    constexpr int CHAINS = V == 1 ? 4 : V <= 3 ? 2 : 1;
    constexpr int64_t TOKENS = V * W;
    for (int64_t r = 0; r < num_rows; r++, sums += TOKENS) {
        prefetch_row(values, columns);
        Floats<W> sum[CHAINS][V];
        const int64_t count = counts[r];
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            sum[0][v] = initial ? initial[r] - Floats<W>{} : load<W>(sums + v * W);
#pragma GCC unroll 4
            for (int c = 1; c < CHAINS; c++) sum[c][v] = Floats<W>{};
        }
        auto add = [&](int64_t i, int chain) __attribute__((always_inline)) {
            const Floats<W> weights = broadcast<W>(values[i]);
            const float* tokens = slab + (columns[i] & (BLOCK - 1)) * TOKENS;
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) {
                sum[chain][v] = multiply_add<W, Value>(sum[chain][v], weights, load<W>(tokens + v * W));
            }
        };
        int64_t i = 0;
        for (; i + CHAINS <= count; i += CHAINS) {
#pragma GCC unroll 4
            for (int c = 0; c < CHAINS; c++) add(i + c, c);
        }
        for (; i < count; i++) add(i, 0);
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
#pragma GCC unroll 4
            for (int c = 1; c < CHAINS; c++) sum[0][v] += sum[c][v];
            store<W>(sum[0][v], sums + v * W);
        }
        values += count;
        columns += count;
    }
}

// One tile: the sums of some rows of the weight for V · W tokens. False where the weight is broken.
template <int W, int V, class Value>
bool sum_tile(const Weight& weight, int64_t first_row, int64_t num_rows, const float* slabs,
              float* sums, const float* initial) {
    const auto* values = static_cast<const Value*>(weight.values);
    for (int64_t block = 0; block < weight.num_blocks(); block++) {
        const float* slab = slabs + block * BLOCK * V * W;
        for (int64_t r = 0; r < num_rows; r += GROUP) {
            const int64_t part = (first_row + r) / GROUP * weight.num_blocks() + block;
            if (!weight.is_whole(part)) return false;
            const int64_t first = weight.starts[part];
            add_block<W, V>(values + first, weight.columns + first, weight.counts + part * GROUP,
                            std::min(GROUP, num_rows - r), slab, sums + r * V * W,
                            block == 0 ? initial + r : nullptr);
        }
    }
    return true;
}

using SumTile = bool (*)(const Weight&, int64_t, int64_t, const float*, float*, const float*);

template <int W, class Value, int... V>
SumTile sum_tile_of(int64_t num_vectors, std::integer_sequence<int, V...>) {
    static constexpr SumTile table[] = {sum_tile<W, V + 1, Value>...};
    return table[num_vectors - 1];
}

// How a product is cut: tokens into tiles of vectors, rows into tiles. Each thread takes tiles of
// tokens of its own, or all share some tiles at once and divide the rows.
struct Cut {
    int64_t depth, num_tokens, width, num_vectors, num_tiles, tile_tokens, tile_rows;
    bool is_shared;
    int64_t num_at_once;

    Cut(const Weight& weight, int64_t num_tokens, int64_t width, int64_t max_vectors,
        int num_threads)
        : depth(weight.num_blocks() * BLOCK),
          num_tokens(num_tokens),
          width(width),
          num_vectors((num_tokens + width - 1) / width),
          num_tiles((num_vectors + max_vectors - 1) / max_vectors),
          tile_tokens(max_vectors * width),
          tile_rows(MAX_TILE_ROWS),
          is_shared(num_tiles % num_threads && num_tiles < TILES_PER_THREAD * num_threads),
          num_at_once(num_threads) {
        const int64_t tile_bytes = depth * tile_tokens * int64_t(sizeof(float));
        is_shared |= num_threads * tile_bytes > APART_BYTES;
        if (!is_shared) return;
        num_at_once = std::clamp<int64_t>(SLAB_BYTES / tile_bytes, 1, num_tiles);
        while (tile_rows > GROUP &&
               num_row_tiles(weight) * num_at_once < TASKS_PER_THREAD * num_threads)
            tile_rows /= 2;
    }

    int64_t num_row_tiles(const Weight& weight) const {
        return (weight.num_rows + tile_rows - 1) / tile_rows;
    }

    struct Tile {
        int64_t first_token, num_tokens, num_vectors;
    };

    Tile tile(int64_t i) const {  // vectors spread evenly
        const int64_t first = i * num_vectors / num_tiles, last = (i + 1) * num_vectors / num_tiles;
        return {first * width, std::min(last * width, num_tokens) - first * width, last - first};
    }
};

// One block of the columns of a tile's inputs, transposed.
template <int W, class Token>
void fill_slab(const Weight& weight, const Cut::Tile& tile, int64_t block, const Token* inputs,
               int64_t input_stride, float* slab) {
    const int64_t padded = tile.num_vectors * W;
    const int64_t num_columns = std::min(BLOCK, weight.num_columns - block * BLOCK);
    if (tile.num_tokens < padded || num_columns < BLOCK)
        std::fill(slab, slab + BLOCK * padded, 0.0f);
    transpose<W>(inputs + tile.first_token * input_stride + block * BLOCK, input_stride,
                 tile.num_tokens, num_columns, slab, padded);
}

// A product at work: what its threads read and write.
template <int W, int MAX_V, class Value, class Token, class Output>
struct Product {
    const Weight& weight;
    const Cut& cut;
    const Token* inputs;
    int64_t input_stride;
    Output* outputs;
    const float* initial;  // the bias, or zeros
    float* slabs;
    float* sums;  // one tile's for each thread
    int num_threads;
    std::atomic<bool> is_broken{false};

    int64_t slabs_size() const { return cut.depth * cut.tile_tokens; }

    void fill(int64_t tile_number, int64_t block, float* tile_slabs) const {
        const Cut::Tile tile = cut.tile(tile_number);
        fill_slab<W>(weight, tile, block, inputs, input_stride,
                     tile_slabs + block * BLOCK * tile.num_vectors * W);
    }

    void sum(int64_t tile_number, int64_t row_tile, const float* tile_slabs, int worker) {
        const Cut::Tile tile = cut.tile(tile_number);
        const int64_t first_row = row_tile * cut.tile_rows;
        const int64_t num_rows = std::min(cut.tile_rows, weight.num_rows - first_row);
        float* own = sums + worker * cut.tile_rows * cut.tile_tokens;
        auto sum_of = sum_tile_of<W, Value>(tile.num_vectors, std::make_integer_sequence<int, MAX_V>());
        if (!sum_of(weight, first_row, num_rows, tile_slabs, own, initial + first_row))
            is_broken = true;
        else {
            activate<W>(weight.activation, own, num_rows * tile.num_vectors * W);
            transpose<W>(own, tile.num_vectors * W, num_rows, tile.num_tokens,
                         outputs + tile.first_token * weight.num_rows + first_row, weight.num_rows);
        }
    }

    // All rows pass over one tile's inputs, which stay in L2, before the next tile's turn.
    void run_apart() {
        for_each_task(cut.num_tiles, num_threads, [&](int64_t tile, int worker) {
            float* own = slabs + worker * slabs_size();
            for (int64_t block = 0; block < weight.num_blocks(); block++) fill(tile, block, own);
            for (int64_t rows = 0; rows < cut.num_row_tiles(weight); rows++)
                sum(tile, rows, own, worker);
        });
    }

    void run_shared() {
        const int64_t num_blocks = weight.num_blocks(), num_row_tiles = cut.num_row_tiles(weight);
        for (int64_t first = 0; first < cut.num_tiles; first += cut.num_at_once) {
            const int64_t num_now = std::min(cut.num_at_once, cut.num_tiles - first);
            for_each_task(num_now * num_blocks, num_threads, [&](int64_t task, int) {
                const int64_t tile = task / num_blocks;
                fill(first + tile, task % num_blocks, slabs + tile * slabs_size());
            });
            for_each_task(num_now * num_row_tiles, num_threads, [&](int64_t task, int worker) {
                const int64_t tile = task / num_row_tiles;
                sum(first + tile, task % num_row_tiles, slabs + tile * slabs_size(), worker);
            });
        }
    }
};

template <int W, int MAX_V, class Value, class Token, class Output = Token>
Status multiply_many(const Weight& weight, const Token* inputs, int64_t input_stride,
                     Output* outputs, int64_t num_tokens, int num_threads) {
    const Cut cut(weight, num_tokens, W, MAX_V, num_threads);
    const int64_t slabs_size = cut.num_at_once * cut.depth * cut.tile_tokens;
    const int64_t sums_size = num_threads * cut.tile_rows * cut.tile_tokens;
    const int64_t padded_rows = weight.num_groups() * GROUP;
    float* slabs = scratch().at_least(slabs_size + sums_size + padded_rows);
    if (!slabs) return NO_MEMORY;
    float* sums = slabs + slabs_size;
    float* initial = sums + sums_size;
    for (int64_t r = 0; r < padded_rows; r++)
        initial[r] = weight.bias && r < weight.num_rows ? weight.bias[r] : 0;

    use_large_pages(outputs, num_tokens * weight.num_rows * int64_t(sizeof(Output)));
    Product<W, MAX_V, Value, Token, Output> product{
        weight, cut, inputs, input_stride, outputs, initial, slabs, sums, num_threads};
    cut.is_shared ? product.run_shared() : product.run_apart();
    return product.is_broken ? BROKEN_WEIGHT : OK;
}

}  // namespace ditprune
