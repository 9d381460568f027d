"""AMUSE's asynchronous calls in coroutines."""

import asyncio
import threading


async def finished(request):
    """Waits for an asynchronous call, or a pool of them, while other coroutines go on; returns the call's result.

    await finished(code.evolve_model.asynchronous(t))
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell(set_it, value):
        if not done.done():  # it may have been cancelled
            set_it(value)

    def wait():
        # AMUSE's requests can only be waited for by blocking.
        try:
            result = request.result() if hasattr(request, "result") else request.waitall()
        except BaseException as error:
            told = tell, done.set_exception, error
        else:
            told = tell, done.set_result, result
        try:
            loop.call_soon_threadsafe(*told)
        except RuntimeError:
            pass  # the loop has been closed

    threading.Thread(target=wait, daemon=True).start()
    return await done
