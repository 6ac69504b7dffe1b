"""A message to people when a night needs them, through any service that Apprise knows."""

import re
from dataclasses import dataclass

from visrec.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NotifyConfig:
    """Where a message goes when the job fails, is refused, or is held back by a gate.

    Attributes:
        url: an Apprise URL, such as mailto://user:password@example.com or slack://...; it gets a
            message for the exit codes 1, 2 and 3. Needs `pip install 'visrec[notify]'`.
    """

    url: str | None = None


def require_notifier(config: NotifyConfig) -> None:
    """Refuses a URL that no service understands, before the night and not after it.

    Raises:
        InputError: Apprise is not installed, or does not know the URL.
    """
    if config.url is None:
        return
    try:
        import apprise
    except ImportError as error:
        raise InputError(
            "--notify.url needs Apprise, which is not installed: pip install 'visrec[notify]'",
            key="notify.url",
        ) from error
    if not apprise.Apprise().add(config.url):
        scheme = "".join(re.findall(r"^[A-Za-z][A-Za-z0-9+.-]*:/*", config.url))
        raise InputError(
            f"Found --notify.url {scheme}..., which is not the URL of a service; expected one as "
            "https://appriseit.com lists them, such as mailto://user:password@example.com.",
            key="notify.url",
        )


def notify(config: NotifyConfig, title: str, body: str) -> bool:
    """Sends a message; False if the service did not take it.

    Args:
        config: where to.
        title: one line.
        body: the job's own message.
    """
    if config.url is None:
        return True
    import apprise

    service = apprise.Apprise()
    service.add(config.url)
    return bool(service.notify(title=title, body=body))
