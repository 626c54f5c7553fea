"""What the writers of one process do at the same time."""

from __future__ import annotations

import anyio

from dgents.testing.client import Add, MakeClient
from dgents.testing.report import Outcome
from dgents.testing.tasks import Writers, together

ACCOUNTS = 5


async def appends(make_client: MakeClient, writers: int, each: int) -> Outcome:
    """Append names that occur once."""
    async with make_client() as client:
        await client.write("appends", [])
        tally = Writers(client)

        async def work(writer: int) -> None:
            for number in range(each):
                name = f"{writer}/{number}"
                await tally.change("appends", Add([name]), name)

        await together(work, writers)
        return tally.outcome("appends", await client.read("appends"))


async def counter(make_client: MakeClient, writers: int, each: int) -> Outcome:
    """Add one to a number; a lost change and one applied twice would hide each other, which `appends` tells apart."""
    async with make_client() as client:
        await client.write("counter", 0)
        tally = Writers(client)

        async def work(writer: int) -> None:
            for _ in range(each):
                await tally.change("counter", Add(1), None)

        await together(work, writers)
        final = await client.read("counter")
    asked, acknowledged = writers * each, len(tally.acknowledged)
    twice = min(max(final - asked, 0), asked)
    lost = max(acknowledged - final, 0)
    applied = asked - twice if twice else final
    return Outcome("counter", applied, asked - applied - lost - twice, lost, twice)


async def bank(make_client: MakeClient, writers: int, each: int) -> Outcome:
    """Transfer between accounts, each with its own key: a withdrawal and a deposit, which leave their names there."""
    accounts = [f"account-{number}" for number in range(ACCOUNTS)]
    async with make_client() as client:
        for account in accounts:
            await client.write(account, [])
        tally = Writers(client)

        async def work(writer: int) -> None:
            for number in range(each):
                source, target = accounts[writer % ACCOUNTS], accounts[(writer + number + 1) % ACCOUNTS]
                taken, given = f"-1 {writer}/{number}", f"+1 {writer}/{number}"
                if await tally.change(source, Add([taken]), taken):
                    await tally.change(target, Add([given]), given)

        await together(work, writers)
        return tally.outcome("bank", [name for account in accounts for name in await client.read(account)])


async def stale(make_client: MakeClient, writers: int, each: int) -> Outcome:
    """Read, wait until all have read, and write: all but one of these writes would undo what its writer never saw."""
    async with make_client() as client:
        await client.write("stale", [])
        tally, all_have_read, reads = Writers(client), anyio.Event(), 0

        async def work(writer: int) -> None:
            nonlocal reads
            value = await client.read("stale")
            reads += 1
            if reads == writers:
                all_have_read.set()
            await all_have_read.wait()
            await tally.attempt(client.write("stale", [*value, str(writer)]), str(writer))

        await together(work, writers)
        return tally.outcome("stale", await client.read("stale"))
