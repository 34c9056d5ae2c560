"""What attention a model can do without, measured: row errors, final-latent sensitivity, and a schedule from them.

``windows`` lists the densities that a grid allows, ``rows`` measures attention errors on sampled query rows, ``cost``
says what that costs, ``trajectory`` cuts a run into segments, ``predict`` and ``choose`` turn measured sensitivities
into the best schedule, and ``study`` puts it all together around a callable that runs a schedule. No part of it knows
a host: who samples, and what a sample is, comes from outside.
"""
