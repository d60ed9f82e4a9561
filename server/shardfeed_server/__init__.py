"""What a data node runs: it reads, decodes, augments and batches samples, and answers those who ask for them.

Importing it fails with a ConfigError where ``import webdataset`` would import another package of that
name; see ``shardfeed_server.names``.
"""

from shardfeed_server.names import check_webdataset as _check_webdataset

_check_webdataset()
