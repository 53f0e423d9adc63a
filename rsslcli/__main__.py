"""`python -m rsslcli` is `rssl`."""

from rsslcli.app import main

main()
