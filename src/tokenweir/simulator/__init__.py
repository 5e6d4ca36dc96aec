"""A simulated Claude API for demos, tests and load.

It answers as the provider does, bills as the provider would, misbehaves on demand, and keeps a journal of truth to check a ledger against. It is the
counterpart of `wire`: it spells the provider's keys on purpose and shares no reading code with it, so that each can find the other's mistakes.

    connection   one exchange on one socket, down to the byte        (the only module that touches a transport)
    intake       body → Ask, or the provider's refusal               refusals   every error of the provider
    tokenizer    text → tokens                                       catalog    the models it knows
    prompt_cache prefix hashing, look-back, TTLs                     rate_limits token buckets and their headers
    directives   what a request or a scenario may ask of it          scenario   the file of rules
    composition  Ask → Answer: blocks, usage, what is billed         stream     Answer → SSE frames or JSON
    delivery     sends an answer, paced and spoilt as directed       replies    sends everything short
    truth        the journal                                         world      what all routes share, the clock too
    server       routes, and one attempt from its first byte on      process    readiness, signals
    paging       lists in pages                                      spool      records on disk

Message Batches:

    batch_scanner body → its requests, as it comes in                batch_intake  what is refused at once
    batches       a batch as it passes its time (pure)               batch_work    row → line of results and line of the journal
    batch_results sends results                                      batch_routes  the routes, and whose batches are whose
"""
