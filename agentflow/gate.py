"""The gate: where policies that decode in this process wait for the episodes that are about to ask for tokens.

Probabilities depend, in the last bit, on what else is in a batch. While every decoding step waits until whoever is at
work in this process has either asked for tokens, begun to wait for the world outside, or ended, batches, and so the
whole run, are a function of the seed. Several policies take turns for the same reason: what one of them says decides
what the others are asked next.
"""

import asyncio


class Gate:
    """Knows who is about to ask for tokens, so that a batch can wait for them.

    Args:
        patience_s: Seconds that a decoding step waits before it goes ahead without those still at work.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._acting: set[str] = set()
        self._idle = asyncio.Event()
        self._ready: set[int] = set()
        self._last = -1
        self._num_moves = 0
        self.num_expired = 0

    def acting(self, name: str) -> None:
        """Note that someone is at work in this process and will soon ask for tokens."""
        self._num_moves += 1
        self._acting.add(name)
        self._idle.clear()

    def away(self, name: str) -> None:
        """Note that someone waits for tokens, for the world outside, or is over."""
        self._num_moves += 1
        self._acting.discard(name)
        if not self._acting:
            self._idle.set()

    async def settle(self, place: int = 0) -> None:
        """Wait until nobody is acting and it is this policy's turn; who outlasts the patience is waited for no more.

        Args:
            place: The policy's place among those that share this gate; each decodes one step in its turn.
        """
        self._ready.add(place)
        self._num_moves += 1
        try:
            while not (await self._is_quiet() and self._next() == place):
                await self._until_idle()
        finally:
            self._ready.discard(place)
        self._last = place
        self._num_moves += 1

    async def _is_quiet(self) -> bool:
        """Say whether nothing has happened while everything had two chances to.

        An episode whose tokens have arrived needs one to act, and a policy that is then asked one to get here.
        """
        num_moves = self._num_moves
        for _ in range(2):
            await asyncio.sleep(0)
            if self._acting or self._num_moves != num_moves:
                return False
        return True

    def _next(self) -> int:
        """Return the place of the policy whose turn it is: round the table, without those that have nothing to do."""
        return min((place for place in self._ready if place > self._last), default=min(self._ready))

    async def _until_idle(self) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                # Whoever begins in the same breath in which the last one ends has cleared the event again by now.
                while self._acting:
                    await self._idle.wait()
        except TimeoutError:
            self.num_expired += 1
            self._acting.clear()
            self._idle.set()
