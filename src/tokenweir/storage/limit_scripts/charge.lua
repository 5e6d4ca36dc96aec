-- Correct counters that are known; see `Buckets.charge`. ARGV: charge id, buckets, units.

local CHARGES_KEPT = 65536
local charge_id, units = ARGV[4], ARGV[6]
for i, bucket in ipairs(read_buckets(ARGV[5], 1)) do
  local s = read_state(call('GET', prefix .. 'b:' .. bucket.id))
  if s and s.kind == COUNTER and s.known then
    local key = prefix .. 'c:' .. bucket.id
    if call('ZADD', key, 'NX', string.format('%.0f', now), charge_id) == 1 then
      if call('ZCARD', key) > CHARGES_KEPT then call('ZREMRANGEBYRANK', key, 0, CHARGES_KEPT / 2 - 1) end
      call('EXPIRE', key, seconds_left(bucket, s))
      s.used = add(s.used, units_at(units, i))
      save(bucket, s)
      if units_at(units, i) < 0 then tell(bucket, s) end
    end
  end
end
return 1
