// Work in several threads, for the sources of all folders.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

// Runs `work(next)` in several threads. Each takes the next piece whenever it has finished one:
// `next()` is the number of the piece, `pieces` or more if there is none left.
template <typename Work>
void in_threads(int64_t threads, int64_t pieces, const Work& work) {
    std::atomic<int64_t> count{0};
    const auto take = [&] { work([&] { return count++; }); };
    std::vector<std::thread> others;
    try {
        for (int64_t t = 1; t < std::min(threads, pieces); t++) others.emplace_back(take);
    } catch (const std::system_error&) {
        // The system refuses more threads; the existing ones do the work.
    }
    take();
    for (auto& other : others) other.join();
}

// Runs `work(from, to)` on equal parts of the range from 0 to n, one for each thread.
template <typename Work>
void parallel_for(int64_t n, int64_t threads, const Work& work) {
    const int64_t parts = std::max<int64_t>(1, std::min(threads, n));
    in_threads(threads, parts, [&](auto next) {
        for (int64_t part; (part = next()) < parts;)
            work(n * part / parts, n * (part + 1) / parts);
    });
}
