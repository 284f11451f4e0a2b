// Tasks for some threads, memory that stays, and large pages.

#pragma once

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <vector>

namespace ditprune {

#ifndef GOMP_PARALLEL
#define GOMP_PARALLEL "GOMP_parallel"
#endif

constexpr size_t ALIGNMENT = 64;

inline void run_on_threads(int num_threads, void (*work)(void*), void* job) {
    // The OpenMP runtime that torch has loaded, so that both share one pool of threads.
    using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
    static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, GOMP_PARALLEL));
    if (num_threads == 1) return work(job);
    if (parallel) return parallel(work, job, unsigned(num_threads), 0);
    std::vector<std::thread> threads;
    try {
        for (int i = 1; i < num_threads; i++) threads.emplace_back(work, job);
    } catch (const std::system_error&) {
        // Fewer threads do the same work.
    }
    work(job);
    for (auto& thread : threads) thread.join();
}

// Each thread takes the next task until none is left.
template <class Task>
void for_each_task(int64_t num_tasks, int num_threads, const Task& task) {
    struct Job {
        const Task& task;
        int64_t num_tasks;
        std::atomic<int64_t> next_task{0};
        std::atomic<int> next_worker{0};
    } job{task, num_tasks};
    auto work = [](void* data) {
        auto* job = static_cast<Job*>(data);
        int worker = job->next_worker++;
        for (int64_t i; (i = job->next_task++) < job->num_tasks;) job->task(i, worker);
    };
    run_on_threads(int(std::min<int64_t>(num_threads, num_tasks)), work, &job);
}

#ifdef __SANITIZE_ADDRESS__
constexpr bool KEEPS_SCRATCH = false;  // spare memory would hide what runs over
#else
constexpr bool KEEPS_SCRATCH = true;
#endif

// Memory that stays with the calling thread, since fresh pages cost as much as a small product.
struct Scratch {
    float* floats = nullptr;
    size_t size = 0;

    float* at_least(size_t num_floats) {
        if (num_floats > size || !KEEPS_SCRATCH) {
            std::free(floats);
            size_t bytes = (num_floats * sizeof(float) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            floats = static_cast<float*>(std::aligned_alloc(ALIGNMENT, bytes));
            size = floats ? num_floats : 0;
        }
        return floats;
    }
    ~Scratch() { std::free(floats); }
};

inline Scratch& scratch() {
    static thread_local Scratch scratch;
    return scratch;
}

// Where a fresh buffer of many MB is about to be written, its small pages would cost a tenth of the
// product; the system may refuse.
inline void use_large_pages(void* buffer, int64_t num_bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t PAGE = 2 << 20;
    const auto start = reinterpret_cast<uintptr_t>(buffer);
    const uintptr_t first = (start + PAGE - 1) / PAGE * PAGE;
    const uintptr_t last = (start + uintptr_t(num_bytes)) / PAGE * PAGE;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace ditprune
