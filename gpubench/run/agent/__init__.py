"""The process that measures: `client` asks, `agent` answers, `worker` one replica of a task."""


def main(requests: int, replies: int) -> None:
    """Answer until the driver hangs up.

    Its interpreter may be of another gpubench (an A/B by git commit): this name does not change.
    """
    from gpubench.run.agent import agent

    agent.main(requests, replies)
