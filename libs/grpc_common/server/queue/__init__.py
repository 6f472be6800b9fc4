"""An event loop that waits in C-core's completion queue, and a server whose calls it drives in one thread.

grpc.aio waits for C-core in a thread of its own, which wakes the loop through a socket for each thing that
completes, and makes several tasks and futures a call. Here the loop's own selector waits in the queue.
"""
