-- A connection of an owner begins: it gets a number that no earlier one had. Answers whether the owner was known, and the number.

local key = prefix .. 'f:' .. owner
local found = call('GET', key)
local number = now
if found and tonumber(found) >= number then number = tonumber(found) + 1 end
call('SADD', prefix .. 'owners', owner)
call('SET', key, string.format('%.0f', number), 'EX', 604800)
return { found and 1 or 0, string.format('%.0f', number) }
