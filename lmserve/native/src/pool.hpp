// Threads that share out the chunks of one phase after another.
//
// A phase is a number of chunks; whoever is free claims the next one. The caller takes part, and
// waits for the chunks that were claimed, not for the threads: one that sleeps, or that the system
// gave no core, holds nobody up. Waiting threads spin for some microseconds, then sleep.

#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace lms {

// Memory that grows and is kept: the contents are lost when it does.
class Buffer {
public:
    template <typename T>
    T *of(int64_t count) {
        const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) & ~size_t{63};
        if (bytes > size_) {
            memory_.reset(static_cast<char *>(std::aligned_alloc(64, bytes)));
            if (!memory_) throw std::bad_alloc();
            size_ = bytes;
        }
        return reinterpret_cast<T *>(memory_.get());
    }

private:
    struct Free {
        void operator()(char *p) const { std::free(p); }
    };
    std::unique_ptr<char, Free> memory_;
    size_t size_ = 0;
};

class Pool {
public:
    explicit Pool(int num_threads) : num_threads_(num_threads < 1 ? 1 : num_threads) {
        try {
            for (int thread = 1; thread < num_threads_; ++thread)
                workers_.emplace_back([this, thread] { work(thread); });
        } catch (...) {
            stop();
            throw;
        }
    }

    ~Pool() { stop(); }

    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int num_threads() const { return num_threads_; }

    // run(chunk, thread) for each chunk, in any order and thread; returns when all are done.
    template <typename Run>
    void each(int64_t num_chunks, const Run &run) {
        if (num_chunks <= 1 || num_threads_ == 1) {
            for (int64_t chunk = 0; chunk < num_chunks; ++chunk) run(chunk, 0);
            return;
        }
        run_ = [](const void *context, int64_t chunk, int thread) {
            (*static_cast<const Run *>(context))(chunk, thread);
        };
        context_ = &run;
        done_.store(0, std::memory_order_relaxed);
        claims_.store(static_cast<uint64_t>(num_chunks) << 32, std::memory_order_release);
        wake();
        claim(0);
        int spins = 0;
        while (done_.load(std::memory_order_acquire) != num_chunks) pause(spins, YIELD_SPINS);
    }

    // Chunks of `grain` items: run(first, last, thread).
    template <typename Run>
    void ranges(int64_t count, int64_t grain, const Run &run) {
        each((count + grain - 1) / grain, [&](int64_t chunk, int thread) {
            const int64_t begin = chunk * grain;
            run(begin, begin + grain < count ? begin + grain : count, thread);
        });
    }

private:
    // a word of claims: number of chunks (32 bits), next chunk (32)
    static constexpr uint64_t NEXT = 0xffffffff;
    static constexpr int YIELD_SPINS = 500;   // tens of microseconds
    static constexpr int SLEEP_SPINS = 1000;

    // Runs chunks as long as there are any. Says whether there were.
    bool claim(int thread) {
        int64_t count = 0;
        for (;;) {
            uint64_t seen = claims_.load(std::memory_order_acquire);
            if ((seen & NEXT) >= seen >> 32) break;
            // perhaps of a later phase by now: what was claimed counts, not what was seen
            seen = claims_.fetch_add(1, std::memory_order_acq_rel);
            const uint64_t chunk = seen & NEXT;
            if (chunk >= seen >> 32) break;
            run_(context_, static_cast<int64_t>(chunk), thread);
            ++count;
        }
        // a phase ends only when all its chunks are counted: these are all of one
        if (count) done_.fetch_add(count, std::memory_order_release);
        return count > 0;
    }

    void work(int thread) {
        int spins = 0;
        while (!stopping_.load(std::memory_order_relaxed)) {
            if (claim(thread)) {
                spins = 0;
            } else if (spins < SLEEP_SPINS) {
                pause(spins, SLEEP_SPINS);
            } else {
                const uint32_t epoch = epoch_.load();
                sleepers_.fetch_add(1);
                if (!claim(thread) && !stopping_.load()) epoch_.wait(epoch);
                sleepers_.fetch_sub(1);
                spins = 0;
            }
        }
    }

    void stop() {
        stopping_.store(true);
        wake();
        for (auto &worker : workers_) worker.join();
    }

    void wake() {
        epoch_.fetch_add(1);
        if (sleepers_.load() > 0) epoch_.notify_all();
    }

    static void pause(int &spins, int limit) {
        _mm_pause();
        if (++spins >= limit && limit == YIELD_SPINS) {
            sched_yield();
            spins = 0;
        }
    }

    const int num_threads_;
    std::vector<std::thread> workers_;
    alignas(64) std::atomic<uint64_t> claims_{0};  // with what goes to every thread beside it
    void (*run_)(const void *, int64_t, int) = nullptr;
    const void *context_ = nullptr;
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<uint32_t> epoch_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stopping_{false};
};

}  // namespace lms
