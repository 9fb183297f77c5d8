// Threads of the native engine (native.cpp), which live between calls, and their barrier.

#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace {

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Waits until `done()` is true. A thread that waits long yields its core.
template <class Condition>
void wait_until(Condition done) {
    constexpr int SPINS = 4000;
    for (int spins = 0; !done(); ++spins) {
        if (spins < SPINS) pause_briefly();
        else std::this_thread::yield();
    }
}

class Barrier {
    std::atomic<int> arrived{0}, phase{0};

  public:
    // Returns once `count` threads have called it.
    void wait(int count) {
        const int before = phase.load();
        if (arrived.fetch_add(1) + 1 < count) return wait_until([&] { return phase.load() != before; });
        arrived = 0;
        phase = before + 1;
    }
};

// One thread's place among the threads that run an image together.
struct Member {
    int index = 0, count = 1;
    Barrier* barrier = nullptr;

    void meet() const {
        if (count > 1) barrier->wait(count);
    }
    // Returns the first of `units` that this member runs. The next member's first one is the end.
    int first(int units) const { return int(int64_t(units) * index / count); }
    int end(int units) const { return int(int64_t(units) * (index + 1) / count); }
};

class Team {
    std::mutex mutex;
    std::condition_variable changed, finished;
    std::vector<std::thread> helpers;
    const std::function<void(int)>* work = nullptr;
    unsigned call = 0;
    int members = 0, running = 0;
    bool stops = false;

    void help(int index) {
        unsigned seen = 0;
        std::unique_lock lock(mutex);
        for (;;) {
            changed.wait(lock, [&] { return stops || (call != seen && index < members); });
            if (stops) return;
            seen = call;
            const auto* mine = work;
            lock.unlock();
            (*mine)(index);
            lock.lock();
            if (--running == 0) finished.notify_one();
        }
    }

  public:
    // Starts threads until there are `count`, including the caller's. Returns the number, which is less if the system
    // has no more.
    int grow(int count) {
        try {
            while (int(helpers.size()) + 1 < count) {
                const int index = int(helpers.size()) + 1;
                helpers.emplace_back([this, index] { help(index); });
            }
        } catch (const std::exception&) {
            // The threads that started do the work.
        }
        return std::min(count, int(helpers.size()) + 1);
    }

    // Calls run(0) in this thread and run(1) to run(count - 1) in others, and waits for all.
    void share(int count, const std::function<void(int)>& run) {
        if (count > 1) {
            std::lock_guard lock(mutex);
            work = &run, members = count, running = count - 1, ++call;
            changed.notify_all();
        }
        run(0);
        if (count > 1) {
            std::unique_lock lock(mutex);
            finished.wait(lock, [&] { return running == 0; });
        }
    }

    ~Team() {
        {
            std::lock_guard lock(mutex);
            stops = true;
        }
        changed.notify_all();
        for (std::thread& helper : helpers) helper.join();
    }
};

}  // namespace
